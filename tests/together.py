"""Runs for several processes: `python together.py devices` trains all of them, one after the other,
in RUNS_ROOT
"""

import random
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from dlframe.architectures import MLP, Conditional, decoder, encoder, predictor
from dlframe.callbacks import Evaluate
from dlframe.classifier import Classifier
from dlframe.evaluation import Terms
from dlframe.gan import GAN
from dlframe.image_sets import images
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.specs import Part
from dlframe.vae import VAE


def classifier():
    return Classifier(predictor('mlp', (1, 8, 8), classes=10, widths=[32]))


def vae():
    return VAE(
        encoder('mlp', (1, 8, 8), z_dim=3, widths=[32]),
        decoder('mlp', 3, (1, 8, 8), widths=[32]),
        prior('standard_normal', 3),
    )


def gan():
    return GAN(
        decoder('mlp', 2, (1, 8, 8), [32]),
        Conditional(MLP((1, 8, 8), [32]), (), head='bernoulli'),
        prior('standard_normal', 2),
    )


class Fail(Part, pl.Callback):
    """Fails on one of the processes, before the step after `step`, unless it goes on from a
    checkpoint
    """

    def __init__(self, step, rank):
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        here = pl_module.counters['steps'], trainer.global_rank
        if here == (self.step, self.rank) and not trainer.ckpt_path:
            raise OSError('the cable')


class Noise(Part, pl.Callback):
    "Writes the random numbers that each process would draw next, as `noise-rank`"

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state = torch.get_rng_state()
        self.drawn = f'{torch.rand(()).item()} {random.getrandbits(30)}'
        torch.set_rng_state(state)

    def on_train_end(self, trainer, pl_module):
        Path(trainer.logger.folder, f'noise-{trainer.global_rank}').write_text(self.drawn)


def new(model, devices, train_for, optimization=None, **options):
    pl.seed_everything(0, verbose=False)
    strategy = {'strategy': 'ddp'} if devices > 1 else {}
    options = {
        'log_every': '7 steps',
        'evaluations': [Evaluate(Terms('valid'), '1 epoch')],
        'trainer': {'accelerator': 'cpu', 'devices': devices, **strategy},
        **options,
    }
    settings = {'lr': 0.01, **(optimization or {})}
    return Run(Optimization(model(), images('digits'), **settings), train_for, **options)


def train(devices):
    """1197 rows in batches of 199, the last of 3: uneven shares, and at last fewer pieces than
    `accumulate`
    """
    sgd = {'batch_size': 199, 'optimizer': 'SGD', 'lr': 0.5, 'momentum': 0.9, 'accumulate': 2}
    new(classifier, devices, '3 epochs', sgd, name='classifier').fit()
    twice = {'players': {'discriminator': {'steps': 2}}}
    new(gan, devices, '12 steps', twice, name='gan', evaluations=[]).fit()
    new(vae, devices, '0.3 seconds', name='seconds', evaluations=[]).fit()
    settings = dict(save_every='5 steps', callbacks=[Noise()])
    new(vae, devices, '18 steps', name='whole', **settings).fit()
    new(vae, devices, '12 steps', name='half', **settings).fit()
    half = new(vae, devices, '1 step', name='half').folder
    resumed = Run.resume(half, '18 steps', packages=['together'])
    print(f'folder {resumed.folder}', flush=True)


if __name__ == '__main__':
    # classes of a module, which a manifest can name, not of `__main__`
    from together import train as train_all

    train_all(int(sys.argv[1]))
