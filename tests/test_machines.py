"""Several processes train as one does; number formats, compiled models and device profiles as they
are in real runs
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import safetensors.torch
import together
import torch
from experiment import PAGE, Jupyter, environment, numbers, once, papermill
from limits import PATIENCE
from pytorch_lightning.plugins import MixedPrecision
from tree import ROOT

from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.checkpoints import read_checkpoint
from dlframe.evaluation import Terms
from dlframe.faces import CelebA, synthetic_celeba
from dlframe.image_sets import images
from dlframe.loading import load
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.specs import Part
from dlframe.vae import VAE


def bounded(*command, env, cwd):
    "Run a command that starts others; none of them is left when it has ended"
    process = subprocess.Popen(
        [str(c) for c in command],
        cwd=cwd,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        left = members(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left, f'{left} were left by {command}'
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def members(group):
    "Processes of a group that live on after it had time to end"
    end = time.monotonic() + PATIENCE / 5
    while True:
        alive = [
            int(p.name)
            for p in Path('/proc').iterdir()
            if p.name.isdigit() and group_of(p) == group
        ]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.1)


def group_of(process):
    try:
        state, _, number = (process / 'stat').read_text().rpartition(')')[2].split()[:3]
    except (OSError, ValueError):
        return None
    return None if state == 'Z' else int(number)


def good(r):
    assert r.returncode == 0, r.stdout + r.stderr
    return r


@pytest.fixture(scope='session')
def home(tmp_path_factory):
    return once(tmp_path_factory, 'home')


@pytest.fixture(scope='session')
def two(tmp_path_factory, home):
    "What two processes left, which a script started"

    def make(to):
        env = environment(home, RUNS_ROOT=to, PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT}/tests')
        r = good(bounded(sys.executable, ROOT / 'tests/together.py', 2, env=env, cwd=to))
        (to / 'said').write_text(r.stdout + r.stderr)

    return once(tmp_path_factory, 'two', make)


@pytest.fixture(scope='session')
def one(tmp_path_factory):
    "What one process left"

    def make(to):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('RUNS_ROOT', str(to))
            together.train(1)

    return once(tmp_path_factory, 'one', make)


def model(folder):
    return load(folder, packages=['together']).model


def test_without_noise_two_processes_end_with_the_weights_of_one(one, two):
    for a, b in zip(model(one / 'classifier').parameters(), model(two / 'classifier').parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_rows_of_metrics_are_the_same(one, two):
    "Each once, with the same counters; the loss of training, too, is that of all rows"
    first, second = numbers(one / 'classifier'), numbers(two / 'classifier')
    named = [{k: v for k, v in r.items() if k != 'value'} for r in first]
    assert named == [{k: v for k, v in r.items() if k != 'value'} for r in second]
    assert [float(r['value']) for r in second] == pytest.approx(
        [float(r['value']) for r in first], rel=1e-5
    )
    assert (
        named[-1].items()
        >= {'name': 'valid/loss', 'steps': '21', 'epochs': '3', 'samples': '3591'}.items()
    )
    assert float(first[-1]['value']) < 0.5 * float(first[0]['value'])


def test_noise_differs_between_processes_and_seeds_do_not_depend_on_how_many(two, one):
    drawn = [
        (root / 'whole' / f'noise-{rank}').read_text().split()
        for root, rank in ((two, 0), (two, 1), (one, 0))
    ]
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
    assert drawn[0][1] == drawn[2][1]  # of Python's generator, which nothing has used


def state(folder):
    return read_checkpoint(folder / 'checkpoints/last.ckpt')


@pytest.mark.parametrize('processes', ['one', 'two'])
def test_a_resumed_run_is_the_run_that_was_not_stopped(processes, request):
    whole, half = (request.getfixturevalue(processes) / name for name in ('whole', 'half'))
    # the shorter run's end was at step 12
    assert [r for r in numbers(half) if r['steps'] != '12'] == numbers(whole)
    a, b = state(whole), state(half)
    for k in a['state_dict']:
        assert torch.equal(a['state_dict'][k], b['state_dict'][k]), k
    assert [r['steps'] for r in json.loads((half / 'manifest.json').read_text())['resumed']] == [12]
    for noise in whole.glob('noise-*'):
        assert noise.read_text() == (half / noise.name).read_text()


def test_what_has_noise_learns_as_well(one, two):
    losses = [
        [float(r['value']) for r in numbers(root / 'whole') if r['name'] == 'valid/loss']
        for root in (one, two)
    ]
    assert losses[0][0] == pytest.approx(losses[1][0]) and losses[0][-1] == pytest.approx(
        losses[1][-1], rel=0.05
    )
    assert losses[1][-1] < 0.8 * losses[1][0]


def test_players_train(two):
    saved = state(two / 'gan')['counters']
    assert (saved['steps'], saved['discriminator_steps'], saved['generator_steps']) == (12, 8, 4)
    assert {r['name'] for r in numbers(two / 'gan')} == {
        'train/discriminator.loss',
        'train/discriminator.data',
        'train/discriminator.made',
        'train/generator.loss',
    }


def test_the_clock_of_one_ends_both(two):
    assert 0.3 <= state(two / 'seconds')['counters']['seconds'] < 60


def test_one_of_them_speaks(two):
    said = (two / 'said').read_text()
    # which the script says in both
    assert said.count('100% ') == 6 and said.count(f'folder {two / "half"}') == 2


@pytest.fixture
def command(tmp_path, home):
    "`dlframe-run`, as it is installed, or as a module; classes of `together` are trusted"
    script = tmp_path / 'dlframe-run'
    script.write_text('import sys\nfrom dlframe.reruns import main\nsys.exit(main())\n')
    env = environment(
        home, RUNS_ROOT=tmp_path / 'runs', PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT}/tests'
    )
    how = {'script': [script], 'module': ['-m', 'dlframe.reruns']}
    return lambda name, *words: bounded(
        sys.executable, *how[name], '--package', 'together', *words, env=env, cwd=tmp_path
    )


def failing(rank):
    return f'run.callbacks=[{{cls: together.Fail, step: 12, rank: {rank}}}]'


def test_a_failure_of_the_second_ends_both_and_the_run_can_go_on(two, command, tmp_path):
    r = command('script', two / 'whole/manifest.json', 'run.name=broken', failing(1))
    assert r.returncode and 'the cable' in r.stderr
    broken = tmp_path / 'runs/broken'
    assert state(broken)['counters']['steps'] == 10
    assert not (broken / 'checkpoints/model.safetensors').exists()
    r = good(command('module', '--resume', broken))
    assert r.stdout.count(f'run folder: {broken}') == 1 and r.stdout.count('100% ') == 1
    assert numbers(broken) == numbers(two / 'whole')
    for a, b in zip(model(broken).parameters(), model(two / 'whole').parameters()):
        assert torch.equal(a, b)


def test_a_failure_of_the_first_ends_both(two, command, tmp_path):
    r = command('module', two / 'whole/manifest.json', 'run.name=broken', failing(0))
    assert r.returncode == 1 and r.stderr.rstrip().endswith('dlframe-run: the cable')
    assert state(tmp_path / 'runs/broken')['counters']['steps'] == 10


def test_what_is_in_no_file_cannot_be_started_again(two, home, tmp_path):
    words = [two / 'whole/manifest.json', '--package', 'together']
    r = bounded(
        sys.executable,
        '-c',
        'from dlframe.reruns import main; main()',
        *words,
        env=environment(
            home, RUNS_ROOT=tmp_path / 'runs', PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT}/tests'
        ),
        cwd=tmp_path,
    )
    assert r.returncode == 1
    assert '`devices` must be 1 in a program that is in no file' in r.stderr
    assert 'Traceback' not in r.stderr
    assert not (tmp_path / 'runs').exists()


def interrupt_when(kernel, metrics):
    "Press the button of Jupyter as soon as a loss is in the file"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not (metrics.exists() and 'train/' in metrics.read_text()):
        time.sleep(0.1)
    kernel.manager.interrupt_kernel()


def test_in_a_notebook_the_kernel_is_forked(two, home, tmp_path):
    """With threads of OpenMP running, which a fork does not copy; and afterwards one process can
    train in the same kernel
    """
    env = {
        **environment(
            home, RUNS_ROOT=tmp_path / 'runs', PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT}/tests'
        ),
        'OMP_NUM_THREADS': '4',
    }
    with Jupyter(tmp_path, env, tmp_path / 'kernel.json') as kernel:

        def do(*lines):
            error, said = kernel.cell('\n'.join(lines))
            assert not error, said

        do(
            'import together, torch',
            'from dlframe.loading import load',
            'torch.set_num_threads(4)',
            'a = torch.rand(500, 500)',
            '(a@a).exp().sum()',
        )
        do(
            "run = together.new(together.vae, 2, '18 steps', name='whole', save_every='5 steps', "
            'callbacks=[together.Noise()]).fit()',
            "assert (run.optimization.counters['steps'], run.optimization.interrupted, "
            'torch.get_num_threads()) == (18, False, 4)',
            'assert all(map(torch.equal, load(run.folder, '
            "packages=['together']).model.parameters(), run.optimization.model.parameters()))",
        )
        do(
            "assert run.resume(run.folder, '20 steps', "
            "packages=['together']).optimization.counters['steps'] == 20"
        )
        error, _ = kernel.cell(
            "together.new(together.vae, 2, '18 steps', name='broken', "
            'callbacks=[together.Fail(5, 1)]).fit()'
        )
        assert 'the cable' in error
        threading.Thread(
            target=interrupt_when, args=(kernel, tmp_path / 'runs/stopped/metrics.csv')
        ).start()
        do(
            "run = together.new(together.vae, 2, '10 minutes', name='stopped', "
            'evaluations=[]).fit()',
            "assert run.optimization.interrupted and run.optimization.counters['steps'] > 1",
        )
        do(
            "assert together.new(together.vae, 1, '3 steps', "
            "name='alone').fit().optimization.counters['steps'] == 3"
        )
    assert [r for r in numbers(tmp_path / 'runs/whole') if int(r['steps']) < 18] == [
        r for r in numbers(two / 'whole') if int(r['steps']) < 18
    ]
    assert not list((tmp_path / 'runs').rglob('checkpoints/.*'))


compiler = pytest.mark.skipif(
    not any(map(shutil.which, ('g++', 'clang++', 'cl'))),
    reason='there is no C++ compiler to compile a model with',
)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path / 'runs'))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'inductor'))
    # no pool of compilers, which would outlive the test
    monkeypatch.setenv('TORCHINDUCTOR_COMPILE_THREADS', '1')
    return tmp_path / 'runs'


def losses(folder):
    return [float(r['value']) for r in numbers(folder) if r['name'] == 'valid/loss']


@compiler
def test_a_compiled_model_trains_as_it_does_otherwise(runs):
    "The last batch is smaller than the others"
    for compile in False, True:
        together.new(
            together.classifier, 1, '12 steps', {'compile': compile}, name=f'compiled-{compile}'
        ).fit()
    for a, b in zip(
        model(runs / 'compiled-True').parameters(), model(runs / 'compiled-False').parameters()
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert losses(runs / 'compiled-True')[-1] == pytest.approx(
        losses(runs / 'compiled-False')[-1], rel=1e-4
    )


@compiler
def test_a_compiled_model_with_noise_learns(runs):
    run = together.new(together.vae, 1, '12 steps', {'compile': True}, name='compiled').fit()
    assert losses(runs / 'compiled')[-1] < 0.8 * losses(runs / 'compiled')[0]
    assert type(run.optimization.compiled).__name__ == 'OptimizedModule'
    for a, b in zip(model(runs / 'compiled').parameters(), run.optimization.model.parameters()):
        assert torch.equal(a, b)


def test_without_a_compiler_nothing_is_written(runs, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(
        ValueError, match='`compile` must be False where there is no C.. compiler, got True'
    ):
        together.new(together.vae, 1, '1 step', {'compile': True}, name='never').fit()
    assert not runs.exists()


def lightning(scaler):
    "A trainer in half precision whose losses are scaled, as they are on a GPU"
    half = MixedPrecision('16-mixed', 'cpu', scaler)
    return pl.Trainer(
        accelerator='cpu',
        plugins=[half],
        max_steps=1,
        max_epochs=1,
        limit_train_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def moved(scale, clip, **optimizer):
    "How far one step with learning rate 1 moves the weights, and the scale after it"
    torch.manual_seed(0)
    optimization = Optimization(
        together.classifier(), images('digits'), 'SGD', lr=1.0, gradient_clip=clip, **optimizer
    )
    scaler = torch.amp.GradScaler('cpu', init_scale=scale)
    before = [p.detach().clone() for p in optimization.model.parameters()]
    torch.manual_seed(1)
    lightning(scaler).fit(optimization)
    return torch.cat(
        [(a - b).flatten() for a, b in zip(before, optimization.model.parameters())]
    ).detach().norm().item(), scaler.get_scale()


@pytest.mark.parametrize('fused', [True, False])
def test_the_gradient_that_is_clipped_is_that_of_the_loss_without_its_scale(fused):
    free, _ = moved(1024.0, None, fused=fused)
    assert free > 0.1
    assert moved(1024.0, 0.05, fused=fused)[0] == pytest.approx(0.05, rel=1e-3)
    # one that is short enough stays
    assert moved(1024.0, 2 * free, fused=fused)[0] == pytest.approx(free, rel=1e-3)


def test_a_step_whose_gradient_overflows_is_left_out_clipped_or_not():
    assert moved(2.0**40, 0.05) == moved(2.0**40, None) == (0.0, 2.0**39)


class Seen(Part, pl.Callback):
    "What the machine is, as the run sees it"

    def on_train_start(self, trainer, pl_module):
        loader = trainer.train_dataloader
        self.seen = (
            torch.get_num_threads(),
            loader.workers,
            type(loader.split).__name__,
            trainer.precision,
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.readers = len(multiprocessing.active_children())


def test_a_device_profile_reaches_the_run(tmp_path, monkeypatch):
    synthetic_celeba(tmp_path / 'disk/faces', 120)
    (tmp_path / 'devices.yaml').write_text(
        'cluster: {accelerator: cpu, data_root: $SCRATCH/faces, runs_root: "${SCRATCH}/runs", '
        'threads: 3, workers: 2, precision: bf16-mixed, download: false}\n'
    )
    for name in 'RUNS_ROOT', 'DATA_ROOT':
        monkeypatch.delenv(name, raising=False)
    for name, value in dict(
        DLFRAME_DEVICES=tmp_path / 'devices.yaml', DEVICE_NAME='cluster', SCRATCH=tmp_path / 'disk'
    ).items():
        monkeypatch.setenv(name, str(value))
    data, seen, threads = CelebA('Smiling', pixels=16), Seen(), torch.get_num_threads()
    torch.manual_seed(0)
    model = VAE(
        encoder('mlp', data.shape, 4, [16]),
        decoder('mlp', 4, data.shape, [16]),
        prior('standard_normal', 4),
    )
    run = Run(
        Optimization(model, data, lr=3e-3, batch_size=32),
        '3 epochs',
        [Evaluate(Terms('valid'), '1 epoch')],
        name='faces',
        callbacks=[seen],
    ).fit()
    assert run.folder == tmp_path / 'disk/runs/faces'
    assert seen.seen == (3, 2, 'Items', 'bf16-mixed') and seen.readers == 2
    assert torch.get_num_threads() == threads
    made = json.loads((run.folder / 'manifest.json').read_text())['made']['device']
    assert (made['name'], made['data_root']) == ('cluster', str(tmp_path / 'disk/faces'))
    assert {p.dtype for p in run.optimization.model.parameters()} == {torch.float32}
    assert all(map(math.isfinite, losses(run.folder)))
    assert losses(run.folder)[-1] < losses(run.folder)[0]
    again = load(run.folder).model
    for a, b in zip(again.parameters(), run.optimization.model.parameters()):
        assert torch.equal(a, b)


def test_the_page_takes_precision_and_determinism(home, tmp_path):
    "Its last cell asserts that the model learned"
    given = dict(
        name='page',
        model='classifier',
        precision='bf16-mixed',
        deterministic='True',
        trainer='{accelerator: cpu}',
        train_for='20 epochs',
    )
    r = papermill(
        ROOT / PAGE, tmp_path / 'out.ipynb', environment(home, RUNS_ROOT=tmp_path / 'runs'), **given
    )
    assert r.returncode == 0, r.stderr
    manifest = json.loads((tmp_path / 'runs/page/manifest.json').read_text())
    assert manifest['run']['trainer'] == {
        'accelerator': 'cpu',
        'precision': 'bf16-mixed',
        'deterministic': True,
    }
    assert {
        v.dtype
        for v in safetensors.torch.load_file(
            tmp_path / 'runs/page/checkpoints/model.safetensors'
        ).values()
    } == {torch.float32}
