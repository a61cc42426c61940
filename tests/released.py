"""Runs of a release, kept as they were written, and the numbers that they give.

`python tests/released.py` writes `tests/releases/<version>`, once for each release; later versions
must load, evaluate, rerun and resume what is there (`test_released.py`).
"""

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from unittest.mock import patch

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import nn

import dlframe
from dlframe.architectures import MLP, Conditional, decoder, encoder, predictor
from dlframe.callbacks import Evaluate, LogTerms, StopEarly
from dlframe.classifier import Classifier
from dlframe.evaluation import ELBO, Reconstructions, Terms, named
from dlframe.files import save_whole
from dlframe.gan import GAN
from dlframe.image_sets import images
from dlframe.latents import ActiveUnits
from dlframe.loading import load
from dlframe.optimization import Optimization
from dlframe.predictions import Accuracy
from dlframe.priors import prior
from dlframe.ramps import Ramp
from dlframe.reruns import rerun
from dlframe.run import Run
from dlframe.specs import find, read
from dlframe.vae import VAE
from dlframe.vib import VIB

RELEASES = Path(__file__).parent / 'releases'
SHAPE = (1, 8, 8)  # of a digit
LONGER = '25 steps'  # what a finished run is trained for altogether when it is resumed
INTERRUPTED_AT = 13  # steps; an epoch has 10

SWEEP = """\
program: nbs/experiments/train.ipynb
method: grid
metric: {name: valid/elbo, goal: maximize}
parameters:
  beta: {values: [0.5, 1.0]}
  z_dim: {value: 2}
  encoder_widths: {value: [16]}
  decoder_widths: {value: [16]}
  train_for: {value: 2 epochs}
  evaluate_every: {value: 1 epoch}
command:
  - ${env}
  - sh
  - -c
  - 'd="${RUNS_ROOT:-runs}/$WANDB_SWEEP_ID" && mkdir -p "$d" && \
exec papermill --engine dlframe "$0" "$d/$WANDB_RUN_ID.ipynb" "$@"'
  - ${program}
  - -f
  - ${args_json_file}
"""


# The runs


def autoencoder(prior_name, z_dim=2, bound='elbo', beta=1.0, **options):
    "A small variational autoencoder for digits"
    posterior = encoder('mlp', SHAPE, z_dim=z_dim, widths=[16])
    likelihood = decoder('mlp', z_dim, SHAPE, widths=[16])
    prior_options = {'vamp': {'components': 5}, 'TRIP': {'components': 3, 'rank': 2}}
    model_prior = prior(prior_name, z_dim, encoder=posterior, **prior_options.get(prior_name, {}))
    return VAE(posterior, likelihood, model_prior, beta, bound=bound, **options)


def vae():
    model = autoencoder('mixture', beta=Ramp(0.0, 0.5, '10 steps'))
    evaluations = [Evaluate(Terms('valid'), '1 epoch'), Evaluate(Reconstructions('valid', 4), None)]
    return model, {}, {'evaluations': evaluations, 'tests': [Terms('test'), ActiveUnits('test')]}


def vib():
    posterior = encoder('conv', SHAPE, z_dim=4, widths=[4, 8], activation='Tanh')
    model = VIB(posterior, predictor('mlp', (4,), classes=10), prior('ard', 4), beta=0.01)
    evaluations = [Evaluate(Terms('valid'), '1 epoch'), Evaluate(Accuracy('valid'), '1 epoch')]
    return model, {}, {'evaluations': evaluations}


def gan():
    generator = decoder('mlp', 2, SHAPE, [16])
    discriminator = Conditional(MLP(SHAPE, [16]), (), head='bernoulli')
    model = GAN(generator, discriminator, prior('standard_normal', 2))
    return model, {'players': {'discriminator': {'steps': 2}}}, {}


def trip():
    model = autoencoder('TRIP', bound='iwae', n_samples=4, gradient='dreg')
    return model, {}, {'evaluations': [Evaluate(ELBO('valid'), '1 epoch')]}


def classifier():
    model = Classifier(predictor('mlp', SHAPE, classes=10, widths=[16]))
    optimization = {
        'optimizer': 'SGD',
        'momentum': 0.9,
        'accumulate': 2,
        'gradient_clip': 1.0,
        'groups': {'predictor.head': {'lr': 0.02}},
        'schedule': {'CosineAnnealingLR': {'T_max': '3 epochs'}},
    }
    evaluations = [Evaluate(Terms('valid'), '1 epoch')]
    stop_early = StopEarly('valid/loss', '30 epochs')
    return model, optimization, {'evaluations': evaluations, 'callbacks': [stop_early]}


def interrupted():
    model = autoencoder('vamp')
    evaluations = [Evaluate(Terms('valid'), '1 epoch')]
    return model, {}, {'evaluations': evaluations, 'save_every': '5 steps', 'log_every': '4 steps'}


RUNS = [vae, vib, gan, trip, classifier, interrupted]


def train(make_parts):
    "Train one of the runs for two epochs; `interrupted` stops within its second"
    pl.seed_everything(0, verbose=False)
    model, optimization, options = make_parts()
    optimization = Optimization(model, images('digits'), **{'lr': 0.01, **optimization})
    run = Run(optimization, '2 epochs', name=make_parts.__name__, **options)
    log = LogTerms.on_train_batch_end

    def interrupt(self, trainer, module, *args):
        log(self, trainer, module, *args)
        if module.counters['steps'] == INTERRUPTED_AT:
            os.kill(os.getpid(), signal.SIGINT)

    if make_parts is interrupted:
        with patch.object(LogTerms, 'on_train_batch_end', interrupt):
            return run.fit()
    return run.fit()


def train_sweep(runs):
    "Let an agent execute the two trials of a sweep, and keep no pictures in their notebooks"
    file = runs.parent / 'grid.yaml'
    file.write_text(SWEEP)
    command = 'from dlframe.agent import main; main()'
    subprocess.run([sys.executable, '-c', command, str(file), str(runs / 'grid')], check=True)
    for page in runs.glob('grid/*.ipynb'):
        notebook = read(page)
        for cell in notebook['cells']:
            cell.pop('outputs', None)
            if cell['cell_type'] == 'code':
                cell['outputs'] = []
        page.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n')


# What they give


def fingerprint(model):
    "The SHA-256 of all weights"
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def last_values(metrics):
    "The last value of each logged name, times left out"
    names = [c for c in metrics.columns if '/' in c and not c.startswith('seconds/')]
    return {name: float(metrics[name].dropna().iloc[-1]) for name in sorted(names)}


def result(model, metrics):
    return {'weights': fingerprint(model), 'metrics': last_values(metrics)}


def evaluations_of(model):
    "What is evaluated on a loaded run"
    if isinstance(model, VAE):
        return [Terms('valid'), ELBO('valid')]
    return [] if isinstance(model, GAN) else [Terms('valid'), Accuracy('valid')]


def evaluate(loaded):
    numbers = {}
    for evaluator in evaluations_of(loaded.model):
        for name, entry in named(evaluator, loaded).items():
            numbers.update(entry.numbers(name))
    return {name: value for name, value in numbers.items() if not name.startswith('seconds/')}


def loaded_again(folder):
    loaded = load(folder)
    return {**result(loaded.model, loaded.metrics), 'evaluated': evaluate(loaded)}


def run_again(folder, name):
    "Rerun from the manifest, in RUNS_ROOT"
    run = rerun(read(folder / 'manifest.json'), {'run.name': name})
    loaded = load(run.folder)
    return result(loaded.model, loaded.metrics)


def resumed(folder):
    "Resume the run in a folder: to its end, or for some more steps"
    finished = json.loads((folder / 'status.json').read_text())['state'] == 'finished'
    Run.resume(folder, LONGER if finished else None)
    loaded = load(folder)
    return result(loaded.model, loaded.metrics)


def arithmetic():
    """How this torch computes on this processor, as a digest: where it is the same, numbers agree
    to the last bit
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 64, generator=generator)
    weights = [torch.randn(16, n, generator=generator).requires_grad_() for n in (64, 16)]
    kernel = torch.randn(4, 1, 3, 3, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([*weights, kernel], lr=0.01)
    for _ in range(20):
        hidden = torch.relu(x @ weights[0].T) @ weights[1].T
        features = torch.conv2d(x.view(-1, 1, 8, 8), kernel, stride=2, padding=1).flatten(1)
        loss = (
            nn.functional.softplus(hidden).mean()
            + hidden.logsumexp(1).mean()
            + features.tanh().exp().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    numbers = torch.cat([w.detach().flatten() for w in [*weights, kernel]]).numpy().tobytes()
    return {'torch': torch.__version__, 'digest': hashlib.sha256(numbers).hexdigest()}


# Names


def class_names():
    "Every class and function of the library that a manifest may name"
    names = []
    for module in iter_modules(dlframe.__path__):
        for name, value in vars(import_module(f'dlframe.{module.name}')).items():
            public = not name.startswith('_') and not module.name.startswith('_')
            if public and isinstance(value, type) and value.__module__ == f'dlframe.{module.name}':
                names.append(f'{value.__module__}.{name}')
    return sorted(name for name in names if is_buildable(name))


def is_buildable(name):
    try:
        return isinstance(find(name), type)
    except (ValueError, TypeError, KeyError):
        return False


# Making them


def forget_machine(folder, home):
    "Replace the names of this machine in all texts; checksums follow"
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        if path.suffix not in ('.json', '.yaml', '.ipynb', '.log', '.txt', '.csv', ''):
            continue
        if path.name == 'SHA256SUMS':
            continue
        text = path.read_text(encoding='utf-8')
        for word, new in [
            (str(home), '/runs'),
            (platform.node(), 'host'),
            (str(RELEASES.parents[1]), '/dlframe'),
            (os.environ.get('DATA_ROOT') or '/data', '/data'),
        ]:
            text = text.replace(word, new)
        if text == path.read_text(encoding='utf-8'):
            continue
        listed = next((d for d in path.parents if (d / 'SHA256SUMS').exists()), None)
        if listed and path.name in (listed / 'SHA256SUMS').read_text():
            (listed / 'SHA256SUMS').write_text(without(listed, path))
            save_whole(lambda new, text=text: new.write_text(text, encoding='utf-8'), path, listed)
        else:
            path.write_text(text, encoding='utf-8')


def drop_superfluous(runs):
    "Remove what no later version reads"
    files = [
        *runs.rglob('.lock'),
        *runs.rglob('code.patch'),
        *runs.rglob('media/**/*.png'),
        *runs.rglob('log'),
    ]
    files += [p for p in runs.rglob('previous.ckpt') if p.parents[1].name != 'interrupted']
    for file in files:
        file.unlink()


def without(home, path):
    name = path.relative_to(home).as_posix()
    lines = (home / 'SHA256SUMS').read_text().splitlines(keepends=True)
    return ''.join(line for line in lines if not line.endswith(f'  {name}\n'))


def run_folders_of(release):
    "Each run by its name; of the sweep its first trial"
    folders = {run.__name__: release / run.__name__ for run in RUNS}
    trials = sorted(path.parent for path in (release / 'grid').glob('*/manifest.json'))
    return {**folders, 'trial': trials[0]}


def results_of(release, home):
    "What each run of a release gives, in a folder that is free"
    found = {}
    for name, folder in run_folders_of(release).items():
        copy = home / 'copies' / name
        shutil.copytree(folder, copy)
        found[name] = {
            'loaded': loaded_again(copy),
            'rerun': run_again(copy, f'{name}-again'),
            'resumed': resumed(copy),
        }
    return found


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def main():
    release = RELEASES / dlframe.__version__
    if release.exists():
        raise SystemExit(f'{release} exists: a release is kept as it was')
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        runs = home / 'runs'
        os.environ.update(RUNS_ROOT=str(runs), OMP_NUM_THREADS='1')
        for make_parts in RUNS:
            train(make_parts)
        train_sweep(runs)
        forget_machine(runs, runs)
        drop_superfluous(runs)
        found = results_of(runs, home)
        for name in [*found]:
            shutil.rmtree(runs / f'{name}-again')
        shutil.move(runs, release)
    write_json(release / 'results.json', {'arithmetic': arithmetic(), 'runs': found})
    write_json(release / 'names.json', class_names())
    sizes = pd.Series(
        {str(p.relative_to(release)): p.stat().st_size for p in release.rglob('*') if p.is_file()}
    )
    print(sizes.sort_values().tail(12), sizes.sum())


if __name__ == '__main__':
    main()
