"""A mistake ends a run before it begins: one error names the argument, the rule and the value, and
no file has changed
"""

import json
import os
import re
import struct
import sys

import pytest
from experiment import PAGE, Jupyter, code, dlframe_run, environment, left, papermill
from tree import ROOT

from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.evaluation import Terms
from dlframe.image_sets import images
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.reruns import main
from dlframe.run import Run
from dlframe.specs import write
from dlframe.vae import VAE


def mnist(root, rows=240):
    "A small set in MNIST's four files"
    folder = root / 'MNIST/raw'
    folder.mkdir(parents=True)
    for part in 'train', 't10k':
        (folder / f'{part}-images-idx3-ubyte').write_bytes(
            struct.pack('>4B3i', 0, 0, 8, 3, rows, 28, 28)
            + bytes(i * i % 256 for i in range(rows * 28 * 28))
        )
        (folder / f'{part}-labels-idx1-ubyte').write_bytes(
            struct.pack('>4Bi', 0, 0, 8, 1, rows) + bytes(i % 10 for i in range(rows))
        )
    return root


def world(root):
    "What must stay as it is: a run and a notebook, data, a file"
    (root / 'runs/taken/checkpoints').mkdir(parents=True)
    for name in 'manifest.json', 'metrics.csv', 'checkpoints/last.ckpt':
        (root / 'runs/taken' / name).write_text('kept')
    (root / 'runs/first.ipynb').write_text('kept')
    (root / 'nothing').mkdir()
    (root / 'file').write_text('kept')
    (root / 'devices.yaml').write_text('cluster: {download: false}\n')
    mnist(root / 'data'), mnist(root / 'damaged')
    cut = root / 'damaged/MNIST/raw/train-images-idx3-ubyte'
    cut.write_bytes(cut.read_bytes()[:100_000])
    return root


def like(said, text):
    return re.fullmatch(re.escape(said).replace('…', '.*'), text)


def table(*rows):
    "One test for each row of values and message"
    return pytest.mark.parametrize(
        'values, said',
        [
            pytest.param(values, said, id=' '.join(f'{n}={v}' for n, v in values.items()))
            for values, said in rows
        ],
    )


@table(
    (
        {'bta': 0.1},
        "ParameterError: `parameters` must be one of …'beta', …, got 'bta'; did you mean 'beta'?",
    ),
    ({'beta': 'abc'}, "ParameterError: `beta` must be of type float, got 'abc'"),
    (
        {'name': 'taken'},
        "FileExistsError: `name` must be that of a new run, got 'taken', whose folder is there "
        'already: …/runs/taken',
    ),
    (
        {'dataset': 'MNIST'},
        'InvalidValue: …/MNIST/raw/train-images-idx3-ubyte is damaged: it has 100,000 bytes '
        'instead of 188,176. …',
    ),
)
def test_papermill(values, said, tmp_path):
    there = world(tmp_path / 'there')
    before = left(there)
    r = papermill(
        PAGE,
        tmp_path / 'out.ipynb',
        environment(tmp_path / 'home', RUNS_ROOT=there / 'runs', DATA_ROOT=there / 'damaged'),
        **values,
    )
    assert r.returncode == 1
    assert like(said, r.stderr.strip().splitlines()[-1])
    assert left(there) == before


@pytest.fixture(scope='module')
def there(tmp_path_factory):
    return world(tmp_path_factory.mktemp('world'))


@pytest.fixture(scope='module')
def kernel(there, tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    env = environment(
        home,
        RUNS_ROOT=there / 'runs',
        DATA_ROOT=there / 'nothing',
        DLFRAME_DEVICES=there / 'devices.yaml',
    )
    with Jupyter((ROOT / PAGE).parent, env, home / 'kernel.json') as kernel:
        yield kernel


def training(page):
    "The cells of a page up to the one that trains"
    cells = code(page)
    return cells[: 1 + next(i for i, c in enumerate(cells) if 'run.fit()' in c)]


EXPERIMENTS = (ROOT / PAGE).parent
pages = {
    'train': training(ROOT / PAGE),
    'gan': training(EXPERIMENTS / 'gan.ipynb'),
    'evaluate': code(EXPERIMENTS / 'evaluate.ipynb'),
}


def refused(kernel, there, said, page='train', **values):
    before = left(there)
    error, _ = kernel.run(
        pages[page], **{**({} if page == 'evaluate' else {'train_for': '5 steps'}), **values}
    )
    assert like(said, error), error
    assert left(there) == before


@table(
    ({'z_dim': 'many'}, "ParameterError: `z_dim` must be of type int, got 'many'"),
    ({'z_dim': 2.5}, 'ParameterError: `z_dim` must be of type int, got 2.5'),
    ({'z_dim': True}, 'ParameterError: `z_dim` must be of type int, got True'),
    ({'beta': 'nan'}, "ParameterError: `beta` must be of type float, got 'nan'"),
    ({'beta': None}, 'ParameterError: `beta` must be of type float, got None'),
    ({'binarize': True}, 'ParameterError: `binarize` must be of type str, got True'),
    ({'encoder_widths': 64}, 'ParameterError: `encoder_widths` must be of type list[int], got 64'),
    ({'encoder_widths': ['a']}, "ParameterError: `encoder_widths` must be of type int, got 'a'"),
    (
        {'predictor_widths': 8},
        'ParameterError: `predictor_widths` must be of type list[int], got 8',
    ),
    ({'schedule': 5}, 'ParameterError: `schedule` must be of type dict[str, dict], got 5'),
    ({'schedule': {'StepLR': 5}}, 'ParameterError: `schedule` must be of type dict, got 5'),
    ({'groups': {'encoder': 0.1}}, 'ParameterError: `groups` must be of type dict, got 0.1'),
    (
        {'groups': {'encoder': {'lr': 'low'}}},
        "TypeError: `groups.encoder.lr` must not be a text, got 'low'",
    ),
    (
        {'optimizer_options': {'weight_decay': 'low'}},
        "TypeError: `optimizer_options.weight_decay` must not be a text, got 'low'",
    ),
    ({'weights': {'rate': 'low'}}, "ParameterError: `weights` must be of type float, got 'low'"),
    ({'weights': 0.1}, 'ParameterError: `weights` must be of type dict[str, float], got 0.1'),
    ({'dataset_options': 32}, 'ParameterError: `dataset_options` must be of type dict, got 32'),
    ({'accumulate': 1.5}, 'ParameterError: `accumulate` must be of type int, got 1.5'),
    ({'compile': 1}, 'ParameterError: `compile` must be of type bool, got 1'),
    ({'deterministic': 'very'}, "ParameterError: `deterministic` must be of type bool, got 'very'"),
    ({'resume': ['a']}, "ParameterError: `resume` must be of type str, got ['a']"),
)
def test_wrong_type(values, said, kernel, there):
    refused(kernel, there, said, **values)


@table(
    (
        {'dataset': 'MNITS'},
        "UnknownName: `dataset` must be one of 'digits', …, got 'MNITS'; did you mean 'MNIST'?",
    ),
    (
        {'encoder': 'cnov'},
        "UnknownName: `encoder` must be one of 'mlp', 'conv', got 'cnov'; did you mean 'conv'?",
    ),
    (
        {'decoder': 'conv'},
        "UnknownName: `decoder` must be one of 'mlp', 'deconv', got 'conv'; did you mean 'deconv'?",
    ),
    (
        {'activation': 'relu'},
        "UnknownName: `activation` must be one of …, got 'relu'; did you mean 'ReLU'?",
    ),
    (
        {'posterior': 'noraml'},
        "UnknownName: `posterior` must be one of 'normal', …, got 'noraml'; did you mean 'normal'?",
    ),
    (
        {'likelihood': 'bernouli'},
        "UnknownName: `likelihood` must be one of …'bernoulli', …, got 'bernouli'; did you mean "
        "'bernoulli'?",
    ),
    (
        {'likelihood': 'categorical'},
        "UnknownName: `likelihood` must be one of …'bernoulli', …, got 'categorical'…",
    ),
    (
        {'prior': 'mixtures'},
        "UnknownName: `prior` must be one of 'standard_normal', 'mixture', 'vamp', 'TRIP', "
        "'flow', 'ard', got 'mixtures'; did you mean 'mixture'?",
    ),
    (
        {'model': 'VEA'},
        "UnknownName: `model` must be one of 'VAE'…, got 'VEA'; did you mean 'VAE'?",
    ),
    (
        {'optimizer': 'Adm'},
        "UnknownName: `optimizer` must be one of …, got 'Adm'; did you mean 'Adam'?",
    ),
    ({'optimizer': 'LBFGS'}, "…`optimizer` must …, got 'LBFGS'…"),
    ({'optimizer': 'SparseAdam'}, "…`optimizer` must …, got 'SparseAdam'…"),
    ({'optimizer': 'Muon'}, "…`optimizer` must …, got 'Muon'…"),
    (
        {'optimizer_options': {'weight_decy': 0.1}},
        "UnknownName: `Adam option` must be one of …, got 'weight_decy'; did you mean "
        "'weight_decay'?",
    ),
    (
        {'logger': 'wandbb'},
        "UnknownName: `logger` must be one of 'files', 'tensorboard', 'wandb', 'wandb-offline', "
        "got 'wandbb'; did you mean 'wandb'?",
    ),
    (
        {'trainer': {'precison': '32-true'}},
        "UnknownName: `trainer` must be one of …, got 'precison'; did you mean 'precision'?",
    ),
    (
        {'model': 'classifier', 'encoder': 'deconv'},
        "UnknownName: `encoder` must be one of 'mlp', 'conv', got 'deconv'; did you mean 'conv'?",
    ),
    (
        {'dataset_options': {'pixels': 32}},
        "UnknownName: `digits option` must be one of 'binarize', 'dequantize', got 'pixels'",
    ),
    (
        {'dataset': 'CelebA', 'dataset_options': {'pixel': 32}},
        "UnknownName: `CelebA option` must be one of …, got 'pixel'; did you mean 'pixels'?",
    ),
    (
        {'dataset': 'CelebA', 'dataset_options': {'target': 'Smilling'}},
        "UnknownName: `target` must be one of …, got 'Smilling'; did you mean 'Smiling'?",
    ),
    (
        {'dataset': 'MNIST', 'dataset_options': {'pixel': 32}},
        "UnknownName: `MNIST option` must be one of …, got 'pixel'; did you mean 'pixels'?",
    ),
    (
        {'schedule': {'CosineAnealingLR': {}}},
        "UnknownName: `schedule` must be one of …, got 'CosineAnealingLR'; did you mean "
        "'CosineAnnealingLR'?",
    ),
    (
        {'schedule': {'CosineAnnealingLR': {'Tmax': 9}}},
        "UnknownName: `CosineAnnealingLR option` must be one of 'T_max', …, got 'Tmax'; did you "
        "mean 'T_max'?",
    ),
    (
        {'groups': {'encodr': {'lr': 0.1}}},
        "UnknownName: `groups` must be one of 'encoder', …, got 'encodr'; did you mean 'encoder'?",
    ),
    (
        {'groups': {'encoder': {'lrr': 0.1}}},
        "UnknownName: `Adam option` must be one of 'lr', …, got 'lrr'; did you mean 'lr'?",
    ),
    (
        {'weights': {'rat': 0.1}},
        "UnknownName: `weights` must be one of 'distortion', 'rate', got 'rat'; did you mean "
        "'rate'?",
    ),
    (
        {'model': 'classifier', 'weights': {'rate': 0.1}},
        "UnknownName: `weights` must be one of 'loss', got 'rate'",
    ),
    (
        {'beta_over': '10 epoks'},
        "UnknownName: `beta_over` must be one of …, got 'epoks'; did you mean 'epochs'?",
    ),
    (
        {'split': 'train+vald'},
        "UnknownName: `split` must be one of 'train', 'valid', 'test', got 'vald'; did you mean "
        "'valid'?",
    ),
    (
        {'save_every': '1 minut and more'},
        'InvalidValue: `save_every` must be a number and a unit, …',
    ),
    ({'precision': 'bf17'}, "ValueError: Precision 'bf17' is invalid. …"),
    (
        {'logger': 'tensorboard+wandbb'},
        "UnknownName: `logger` must be one of …, got 'wandbb'; did you mean 'wandb'?",
    ),
    (
        {'train_for': '3 fortnights'},
        "UnknownName: `train_for` must be one of 'seconds', …'steps', …, got 'fortnights'",
    ),
    (
        {'evaluate_every': '10 epoks'},
        "UnknownName: `evaluate_every` must be one of …, got 'epoks'; did you mean 'epochs'?",
    ),
    (
        {'log_every': '10 stpes'},
        "UnknownName: `log_every` must be one of …, got 'stpes'; did you mean 'steps'?",
    ),
)
def test_unknown_name(values, said, kernel, there):
    refused(kernel, there, said, **values)


@table(
    ({'z_dim': 0}, 'InvalidValue: `z_dim` must be at least 1, got 0'),
    ({'beta': -1}, 'InvalidValue: `beta` must be at least 0, got -1.0'),
    ({'z_dim': -1}, 'InvalidValue: `z_dim` must be at least 1, got -1'),
    ({'n_samples': 0}, 'InvalidValue: `n_samples` must be at least 1, got 0'),
    (
        {'prior': 'mixture', 'prior_options': {'components': 0}},
        'InvalidValue: `components` must be at least 1, got 0',
    ),
    ({'encoder_widths': [64, 0]}, 'InvalidValue: `encoder_widths[1]` must be at least 1, got 0'),
    ({'decoder_widths': [-1]}, 'InvalidValue: `decoder_widths[0]` must be at least 1, got -1'),
    ({'decoder': 'deconv', 'decoder_widths': []}, 'InvalidValue: `…` must …, got []'),
    (
        {'encoder': 'conv', 'encoder_widths': [8] * 5},
        'InvalidValue: `channels` must leave an image of at least one pixel, got size 1 before '
        'layer 3 with kernel 4',
    ),
    (
        {'likelihood': 'normal', 'scale': -1.0},
        'InvalidValue: `scale` must be larger than 0, got -1.0',
    ),
    (
        {'scale': 0.5},
        'ValueError: `scale` must be 0 unless the likelihood is normal, got 0.5 for bernoulli',
    ),
    (
        {'model': 'classifier', 'prior': 'noraml'},
        "UnknownName: `prior` must be one of …, got 'noraml'…",
    ),
    (
        {'model': 'VIB', 'gradient': 'stl'},
        'ValueError: `gradient` and `sampled_rate` must be left as they are unless the model is '
        "a VAE or an IWAE, got 'stl' and False for VIB",
    ),
    (
        {'model': 'IWAE', 'n_samples': 5, 'weights': {'rate': 0.1}},
        'InvalidValue: `weights` must not be given for a VAE whose loss is no sum of its terms, '
        "got {'rate': 0.1}…",
    ),
    ({'lr': 0.0}, 'InvalidValue: `lr` must be larger than 0, got 0.0'),
    ({'batch_size': 0}, 'InvalidValue: `batch_size` must be at least 1, got 0'),
    ({'gradient_clip': -1.0}, 'InvalidValue: `gradient_clip` must be larger than 0, got -1.0'),
    ({'seed': -1}, 'InvalidValue: `seed` must be at least 0, got -1'),
    (
        {'train_for': 'soon'},
        "InvalidValue: `train_for` must be a number and a unit, like …, got 'soon'",
    ),
    ({'train_for': '0 steps'}, "InvalidValue: `train_for` must be larger than 0, got '0 steps'"),
    (
        {'evaluate_every': '0 epochs'},
        "InvalidValue: `evaluate_every` must be larger than 0, got '0 epochs'",
    ),
    ({'predictor_widths': [8, 0]}, 'InvalidValue: `predictor_widths[1]` must be at least 1, got 0'),
    (
        {'optimizer_options': {'lr': 1.0}},
        "ValueError: `optimizer_options` must not hold 'lr', which is a parameter itself, got 1.0",
    ),
    (
        {'schedule': {'CosineAnnealingLR': {'T_max': '10 minutes'}}},
        "InvalidValue: `CosineAnnealingLR.T_max` must be in steps or epochs, got '10 minutes'",
    ),
    (
        {'groups': {'encoder': {'lr': -1.0}}},
        'InvalidValue: `groups.encoder.lr` must be at least 0, got -1.0',
    ),
    ({'weights': {'rate': -1.0}}, 'InvalidValue: `weights.rate` must be at least 0, got -1.0'),
    ({'accumulate': 0}, 'InvalidValue: `accumulate` must be at least 1, got 0'),
    ({'beta_over': '0 epochs'}, "InvalidValue: `beta_over` must be larger than 0, got '0 epochs'"),
    ({'save_every': '0 steps'}, "InvalidValue: `save_every` must be larger than 0, got '0 steps'"),
    (
        {'dataset': 'CelebA', 'dataset_options': {'pixels': 0}},
        'InvalidValue: `pixels` must be at least 1, got 0',
    ),
    (
        {'resume': 'nowhere'},
        "FileNotFoundError: `resume` must be the folder of a run to resume, got 'nowhere'",
    ),
    ({'name': '../escaped'}, "InvalidValue: `name` must be letters, …, got '../escaped'"),
    ({'trainer': {'precision': 'bf17'}}, "…'bf17'…"),
    ({'trainer': {'devices': 0}}, '…devices=0…'),
    ({'trainer': {'gradient_clip_val': 1.0}}, '…gradient_clip_val…'),
)
def test_impossible_value(values, said, kernel, there):
    refused(kernel, there, said, **values)


@table(
    (
        {'model': 'GNA'},
        "UnknownName: `model` must be one of 'GAN', 'VAEGAN', got 'GNA'; did you mean 'GAN'?",
    ),
    (
        {'generator': 'conv'},
        "UnknownName: `generator` must be one of 'mlp', 'deconv', got 'conv'; did you mean "
        "'deconv'?",
    ),
    (
        {'discriminator': 'deconv'},
        "UnknownName: `discriminator` must be one of 'mlp', 'conv', got 'deconv'; did you mean "
        "'conv'?",
    ),
    ({'generator_widths': [0]}, 'InvalidValue: `generator_widths[0]` must be at least 1, got 0'),
    (
        {'discriminator_widths': [0]},
        'InvalidValue: `discriminator_widths[0]` must be at least 1, got 0',
    ),
    ({'model': 'VAEGAN', 'gamma': -1.0}, 'InvalidValue: `gamma` must be at least 0, got -1.0'),
    ({'players': {'discriminator': 3}}, 'ParameterError: `players` must be of type dict, got 3'),
    (
        {'players': {'discriminatr': {}}},
        "UnknownName: `players` must be one of 'discriminator', 'generator', got 'discriminatr'; "
        "did you mean 'discriminator'?",
    ),
    (
        {'players': {'discriminator': {'lr': 0.0}}},
        'InvalidValue: `players.discriminator.lr` must be larger than 0, got 0.0',
    ),
    (
        {'players': {'discriminator': {'steps': 0}}},
        'InvalidValue: `players.discriminator.steps` must be at least 1, got 0',
    ),
    (
        {'players': {'generator': {'lrr': 1.0}}},
        "UnknownName: `Adam option` must be one of 'lr', …, got 'lrr'; did you mean 'lr'?",
    ),
    (
        {'train_for': '9 decoder_steps'},
        "UnknownName: `train_for` must be one of …'generator_steps', got 'decoder_steps'…",
    ),
    (
        {'evaluate_every': '9 encoder_steps'},
        "UnknownName: `evaluate_every` must be one of …, got 'encoder_steps'…",
    ),
)
def test_gan(values, said, kernel, there):
    refused(kernel, there, said, 'gan', **values)


@table(
    (
        {'run': 'nowhere'},
        "MissingFile: `run` must be a folder, or a run of W&B like 'entity/project/run_id', got "
        "'nowhere'",
    ),
    (
        {'run': '.'},
        'MissingFile: `run` must be the folder of a run with a checkpoint, got . without '
        'manifest.json',
    ),
    (
        {'split': 'tset'},
        "UnknownName: `split` must be one of 'train', 'valid', 'test', got 'tset'; did you mean "
        "'test'?",
    ),
    ({'split': ''}, "UnknownName: `split` must be one of 'train', 'valid', 'test', got ''"),
    ({'n': -1}, 'InvalidValue: `n` must be at least 0, got -1'),
    ({'n': 'all'}, "ParameterError: `n` must be of type int, got 'all'"),
    ({'n_samples': 0}, 'InvalidValue: `n_samples` must be at least 1, got 0'),
    (
        {'device': 'gpu'},
        "UnknownName: `device` must be one of 'auto', 'cpu', 'cuda', …, got 'gpu'…",
    ),
    (
        {'device': 'cuda:99'},
        "InvalidValue: `device` must be one of cpu… on this machine, got 'cuda:99'",
    ),
    ({'export': '.'}, "FileExistsError: `export` must be a new or an empty folder, got '.'"),
)
def test_evaluate(values, said, kernel, there):
    refused(kernel, there, said, 'evaluate', **values)


def test_evaluate_a_manifest_that_is_none(kernel, there):
    refused(
        kernel,
        there,
        f'…{there / "runs/taken/manifest.json"} must hold a mapping, got str',
        'evaluate',
        run=str(there / 'runs/taken'),
    )


@pytest.fixture
def variables(kernel):
    "Set variables of the environment for one test"
    kernel.cell('import os; kept = dict(os.environ)')
    yield lambda **changes: kernel.cell(
        f'os.environ.update({ {k: str(v) for k, v in changes.items()} })'
    )
    kernel.cell('os.environ.clear(); os.environ.update(kept)')


@pytest.mark.parametrize(
    'damage, said',
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), '188,175 bytes instead of 188,176'),
        (
            lambda file: file.write_bytes(file.read_bytes() + b'\0'),
            '188,177 bytes instead of 188,176',
        ),
        (lambda file: file.write_bytes(b''), 'a header that is not of this format'),
        (
            lambda file: file.write_text('<html>404 Not Found</html>'),
            'a header that is not of this format',
        ),
        (lambda file: file.write_bytes(file.with_name('t10k-labels-idx1-ubyte').read_bytes()), '…'),
    ],
    ids=['short', 'long', 'empty', 'not idx', 'labels'],
)
@pytest.mark.parametrize('name', ['train-images-idx3-ubyte', 't10k-images-idx3-ubyte'])
def test_damaged_file(name, damage, said, kernel, there, variables, tmp_path):
    file = mnist(tmp_path) / 'MNIST/raw' / name
    damage(file)
    before = left(tmp_path)
    variables(DATA_ROOT=tmp_path)
    refused(
        kernel,
        there,
        f'InvalidValue: {file} is damaged: it has {said}. Delete it (or put a good copy in its '
        'place) and run again',
        dataset='MNIST',
    )
    assert left(tmp_path) == before


def test_labels_of_other_images(kernel, there, variables, tmp_path):
    labels = mnist(tmp_path / '240') / 'MNIST/raw/train-labels-idx1-ubyte'
    labels.write_bytes(
        (mnist(tmp_path / '120', 120) / 'MNIST/raw/train-labels-idx1-ubyte').read_bytes()
    )
    variables(DATA_ROOT=tmp_path / '240')
    refused(kernel, there, 'InvalidValue: …MNIST…240…120…', dataset='MNIST')


@pytest.mark.parametrize('root', ['nothing', 'nowhere', 'file'])
def test_no_data_and_no_network(root, kernel, there, variables):
    variables(DATA_ROOT=there / root)
    refused(
        kernel,
        there,
        f'MissingFile: `dataset` MNIST is not in {there / root} and could not be downloaded (…): '
        'set DATA_ROOT to the folder that holds it, …',
        dataset='MNIST',
    )


def test_downloads_are_forbidden(kernel, there, variables):
    variables(DEVICE_NAME='cluster')
    refused(
        kernel,
        there,
        f'MissingFile: `dataset` MNIST must be in {there / "nothing"} and may not be downloaded '
        'on this machine: set DATA_ROOT …',
        dataset='MNIST',
    )


def test_unknown_device(kernel, there, variables):
    variables(DEVICE_NAME='clutser')
    refused(
        kernel,
        there,
        "UnknownName: `DEVICE_NAME (profiles of …devices.yaml)` must be one of 'cluster', got "
        "'clutser'; did you mean 'cluster'?",
    )


@pytest.mark.parametrize('root', ['file', 'file/runs'])
def test_runs_cannot_be_written(root, kernel, there, variables):
    variables(RUNS_ROOT=there / root)
    refused(kernel, there, f'…Error: `runs_root` must be …{there / root}…')


def test_then_the_corrected_page_trains(kernel, there, variables):
    variables(DATA_ROOT=there / 'data')
    before = left(there)
    error, _ = kernel.run(pages['train'], dataset='MNIST', train_for='5 steps', name='corrected')
    assert not error
    assert (there / 'runs/corrected/checkpoints/model.safetensors').exists()
    assert all(left(there)[p] == content for p, content in before.items())


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A manifest that would train, and where it would"
    there = world(tmp_path / 'there')
    for name, value in environment(
        tmp_path, RUNS_ROOT=there / 'runs', DATA_ROOT=there / 'nothing'
    ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    data = images('digits')
    model = VAE(
        encoder('mlp', data.shape, 2, [8]),
        decoder('mlp', 2, data.shape, [8]),
        prior('standard_normal', 2),
    )
    write(
        Run(
            Optimization(model, data), '5 steps', evaluations=[Evaluate(Terms('valid'))]
        ).manifest(),
        there / 'manifest.json',
    )
    return there


def refused_command(here, said, *words):
    before = left(here)
    with pytest.raises(SystemExit) as e:
        main([str(w) for w in words])
    assert like(f'dlframe-run: {said}', e.value.code)
    assert left(here) == before


def changes(*rows):
    return pytest.mark.parametrize('change, said', [pytest.param(*row, id=row[0]) for row in rows])


@changes(
    ('model.bta=0.1', "`model.bta` must be one of …'beta', …, got 'bta'; did you mean 'beta'?"),
    ('modle.beta=0.1', "`modle` must be one of 'model', …, got 'modle'; did you mean 'model'?"),
    ('model.beta', "`change` must look like model.beta=0.2, got 'model.beta'"),
    ('model.beta=abc', "model: `beta` must be a number, got 'abc'"),
    ('model.beta=-1', 'model: `beta` must be at least 0, got -1'),
    (
        'model.encoder.head=nomal',
        "model.encoder: `head` must be one of 'normal', …, got 'nomal'; did you mean 'normal'?",
    ),
    ('model.encoder=null', '…`encoder` must …, got None'),
    (
        'model.prior.event_shape=7',
        "model: `prior.event_shape` must be that of the encoder's latents, (2,), got (7,)",
    ),
    (
        'data.cls=dlframe.image_sets.Digit',
        "data: `dlframe.image_sets.*` must be one of …, got 'Digit'; did you mean 'Digits'?",
    ),
    (
        'optimization.split=trian',
        "optimization: `split` must be one of 'train', 'valid', 'test', got 'trian'; did you "
        "mean 'train'?",
    ),
    (
        'optimization.split=train+vald',
        "optimization: `split` must be one of 'train', 'valid', 'test', got 'vald'; did you mean "
        "'valid'?",
    ),
    ('optimization.lr=[1]', 'optimization: `lr` must be a number, got [1]'),
    (
        'run.evaluations.0.evaluator.split=vlaid',
        "`split` must be one of 'train', 'valid', 'test', got 'vlaid'; did you mean 'valid'?",
    ),
    ('run.evaluations.7.evaluator.split=valid', "`run.evaluations.7` must be one of '0', got '7'"),
    ('run.evaluations=[3]', '…`evaluations` must …3…'),
    ('run.optimization=3', '…`optimization` must …, got 3'),
    (
        'run.name=taken',
        "`name` must be that of a new run, got 'taken', whose folder is there already: "
        '…/runs/taken',
    ),
    ('run.name=5', '…`name` must …, got 5'),
    ('run.trainer=5', '…`trainer` must …, got 5'),
    ('run.train_for=3 fortnights', "run: `train_for` must be one of …, got 'fortnights'"),
    ('run.train_for={', "…'{'…"),
    ('run.seed=-1', '`run.seed` must be at least 0, got -1'),
    ('run=3', '…`run` must …, got 3'),
)
def test_change_to_a_manifest(change, said, here):
    refused_command(here, said, here / 'manifest.json', change)


@pytest.mark.parametrize(
    'content, said',
    [
        (None, "…No such file or directory: '{}'"),
        ('', '{} must hold a mapping, got NoneType'),
        ('[1]', '{} must hold a mapping, got list'),
        ('{"model": {"cls": ', '{} must be JSON or YAML: …'),
        ('{"model": 1}', '`run` must be described in the manifest, got None among model'),
        ('!!python/object/apply:os.system ["touch executed"]', '{} must be JSON or YAML: …'),
    ],
    ids=['missing', 'empty', 'a list', 'cut off', 'no run', 'a command'],
)
def test_manifest_that_is_none(content, said, here, monkeypatch):
    monkeypatch.chdir(here)
    if content is not None:
        (here / 'other.json').write_text(content)
    refused_command(here, said.replace('{}', str(here / 'other.json')), here / 'other.json')


@pytest.mark.parametrize('cls', ['os.system', 'torch.os.system', "<class 'subprocess.Popen'>"])
def test_manifest_that_names_a_command(cls, here, monkeypatch):
    monkeypatch.chdir(here)
    manifest = json.loads((here / 'manifest.json').read_text())
    write({**manifest, 'model': {'cls': cls, 'command': 'touch executed'}}, here / 'other.json')
    refused_command(
        here,
        "model: `cls` must come from dlframe, torch, …, got '…'; if you trust it, add "
        "packages=['…']",
        here / 'other.json',
    )


def test_dlframe_run_is_one_line_and_a_status(here):
    before = left(here)
    r = dlframe_run(here / 'manifest.json', 'model.bta=0.1', env=dict(os.environ))
    assert (r.returncode, r.stdout) == (1, '')
    assert like(
        "dlframe-run: `model.bta` must be one of …'beta', …, got 'bta'; did you mean 'beta'?\n",
        r.stderr,
    )
    assert left(here) == before


def test_the_manifest_without_a_mistake_trains(here):
    main([str(here / 'manifest.json'), 'run.name=good'])
    assert (here / 'runs/good/checkpoints/model.safetensors').exists()
