"""A VAE of kernels, as MarkovDWP trained it: what is looked at after each epoch is on the disk, at
its step, without an account
"""

import csv
from pathlib import Path

import numpy as np
import torch

from dlframe.architectures import Conditional, Conv, Deconv
from dlframe.callbacks import Evaluate
from dlframe.evaluation import LatentRecovery, LogLikelihood, PriorSamples, Reconstructions, Terms
from dlframe.kernels import Kernels, write_kernels
from dlframe.latents import ActiveUnits
from dlframe.loading import load
from dlframe.optimization import Optimization
from dlframe.priors import TRIP
from dlframe.run import Run
from dlframe.vae import VAE


def test_every_epoch_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path / 'runs'))
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    # of each direction
    waves = np.sin(
        np.add.outer(
            np.arange(7), draw.normal(size=(12, 8, 4)) * np.arange(7)[:, None, None, None]
        ).transpose(2, 3, 4, 0, 1)
    )
    write_kernels(tmp_path / 'kernels__waves', {'conv': waves.astype(np.float32)})
    options = dict(kernel_size=3, stride=1, padding=0, activation='ELU')
    q = Conditional(Conv((1, 7, 7), (16, 32, 32), **options), (2, 1, 1))
    p = Conditional(Deconv((2, 1, 1), (7, 7), (32, 32, 16), dense=False, **options), (1, 7, 7))
    data = Kernels(str(tmp_path / 'kernels__waves'), 'conv')
    model = VAE(q, p, TRIP((2, 1, 1), components=8, rank=4))
    looks = [
        Terms('valid'),
        LogLikelihood('valid', n_samples=100),
        LatentRecovery(),
        ActiveUnits('valid'),
        Reconstructions('valid', 8),
        PriorSamples(8),
    ]
    Run(
        Optimization(model, data, 'Adam', 0.003, 32),
        '3 epochs',
        [Evaluate(look, '1 epoch') for look in looks],
        name='kernels',
    ).fit()

    _, _, metrics, folder, *_ = load(tmp_path / 'runs/kernels')
    steps = [0, 10, 20, 30]  # of the 10 networks to train on, 32 kernels each
    for name in (
        'valid/distortion',
        'valid/log_likelihood',
        'latent_recovery',
        'valid/active_units/number',
    ):
        logged = metrics[name].dropna()
        assert logged.index.tolist() == steps and logged.map(np.isfinite).all(), name
    assert (
        metrics['valid/log_likelihood'].dropna().iloc[-1]
        > metrics['valid/log_likelihood'].dropna().iloc[0]
    )
    with open(folder / 'metrics.csv') as f:
        assert {int(float(r['steps'])) for r in csv.DictReader(f) if r['name'] == 'valid/loss'} == {
            *steps
        }
    for name in 'valid/reconstructions', 'samples':
        pictures = sorted(Path(folder / 'media').glob(f'{name}*'))
        assert len(pictures) == len(steps), [str(p) for p in (folder / 'media').rglob('*')]
