"""Nothing is lost: runs that are killed, asked to go, on disks that are full or closed, wanted by
two, or led astray by their own loss
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
from experiment import (
    PAGE,
    attentive,
    environment,
    left,
    numbers,
    once,
    papermill,
    start,
    statuses,
    stayed,
    trial_page,
    weights,
)
from limits import PATIENCE
from torture import differences
from tree import ROOT
from tree import run as tool
from warm import python

from dlframe.checkpoints import newest
from dlframe.loading import load
from dlframe.specs import Part
from dlframe.status import recorded, state


@pytest.fixture(scope='session')
def home(tmp_path_factory):
    return once(tmp_path_factory, 'home')


@pytest.fixture(scope='session')
def metadata(tmp_path_factory):
    "Where papermill finds the engine"

    def make(to):
        assert tool('python', 'setup.py', '-q', 'egg_info', '--egg-base', to).returncode == 0

    return once(tmp_path_factory, 'metadata', make)


# Killed. `make torture` does the same ten times as often


def tortured(*words, kills):
    r = subprocess.run(
        [sys.executable, ROOT / 'tests/torture.py', *words],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        text=True,
        capture_output=True,
    )
    said = re.search(r'(\d+) kills, (\d+) resumed, lost = (\d+), different = (\d+)', r.stdout)
    assert said, r.stdout + r.stderr
    assert said.groups()[2:] == ('0', '0') and r.returncode == 0, r.stdout
    assert int(said[1]) >= kills and int(said[2]) > 0, r.stdout


def test_killed_at_random():
    tortured('--kills', '9', '--every', '0', '--commands', '0', kills=9)


def test_killed_before_a_call_that_changes_a_file():
    tortured('--kills', '0', '--every', '30', '--commands', '0', kills=6)


def test_killed_under_papermill_and_dlframe_run():
    tortured('--kills', '0', '--every', '0', '--commands', '1', kills=1)


# Asked to go


def waiting(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def metrics(run):
    return (run / 'metrics.csv').read_text() if (run / 'metrics.csv').exists() else ''


def asked(process, run, number):
    """Send a signal as soon as a loss of training is in the file; the exit status, which comes long
    before the ten hours are over
    """
    waiting(lambda: 'train/loss' in metrics(run) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    sent = time.time()
    process.send_signal(number)
    status = process.wait(timeout=PATIENCE)
    return status, sent


started = []


@pytest.fixture(autouse=True)
def nobody_stays():
    "No process outlives its test, whatever came of it"
    yield
    while started:
        process = started.pop()
        process.kill(), process.wait()


def background(words, env, cwd):
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    started.append(
        subprocess.Popen(
            [str(w) for w in words], cwd=cwd, env=env, text=True, preexec_fn=attentive, **pipes
        )
    )
    return started[-1]


def cluster(folder):
    "Variables of a SLURM job, and a `scontrol` that writes down what it was asked"
    folder.mkdir()
    (folder / 'scontrol').write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    (folder / 'scontrol').chmod(0o755)
    return dict(
        SLURM_NTASKS='1',
        SLURM_JOB_ID='7',
        SLURM_JOB_NAME='train',
        SLURM_PROCID='0',
        SLURM_LOCALID='0',
        SLURM_NODEID='0',
        SLURM_NODELIST='here',
    )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_asked_to_go_under_papermill(number, home, metadata, tmp_path):
    """The notebook is kept, the checkpoint is newer than the signal, SLURM is asked once, and the
    same command goes on
    """
    slurm = cluster(tmp_path / 'slurm')
    env = environment(
        home, RUNS_ROOT=tmp_path / 'runs', PYTHONPATH=f'{ROOT}{os.pathsep}{metadata}', **slurm
    )
    env['PATH'] = f'{tmp_path / "slurm"}{os.pathsep}{env["PATH"]}'
    run = tmp_path / 'runs/first'
    words = [sys.executable, '-m', 'papermill', '--engine', 'dlframe', PAGE]
    process = background(
        [
            *words,
            tmp_path / 'out.ipynb',
            '-p',
            'name',
            'first',
            '-p',
            'train_for',
            '10 hours',
            '-p',
            'save_every',
            '10 hours',
        ],
        env,
        ROOT,
    )
    status, sent = asked(process, run, number)
    assert status == 1
    assert (run / 'checkpoints/last.ckpt').stat().st_mtime > sent
    told = recorded(run)
    assert (told['state'], told['signal'], told['steps']) == (
        'interrupted',
        number.name,
        newest(run)[1]['counters']['steps'],
    )
    assert told['steps'] > 0
    said = (tmp_path / 'out.ipynb').read_text('utf-8')
    assert f'stopped after step {told["steps"]}, at ' in said
    assert f'of 36000 seconds; resume with: papermill … -p resume {run}\\n' in said
    asked_slurm = (
        (tmp_path / 'slurm/asked').read_text() if (tmp_path / 'slurm/asked').exists() else ''
    )
    assert asked_slurm == ('requeue 7\n' if number == signal.SIGUSR1 else '')
    again = start(
        *words,
        tmp_path / 'again.ipynb',
        '-p',
        'resume',
        run,
        '-p',
        'train_for',
        f'{told["steps"] + 20} steps',
        env=env,
    )
    assert again.returncode == 0, again.stderr
    assert state(run) == 'finished' and load(run).metrics.index[-1] == told['steps'] + 20


@pytest.mark.parametrize(
    'number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP], ids=lambda n: n.name
)
def test_asked_to_go_in_a_program(number, home, tmp_path, manifest):
    env = environment(home, RUNS_ROOT=tmp_path / 'runs')
    process = background(
        [
            sys.executable,
            '-m',
            'dlframe.reruns',
            manifest,
            'run.name=first',
            'run.train_for=10 hours',
        ],
        env,
        tmp_path,
    )
    status, sent = asked(process, tmp_path / 'runs/first', number)
    assert status == 128 + number
    assert (tmp_path / 'runs/first/checkpoints/last.ckpt').stat().st_mtime > sent
    assert 'Traceback' not in process.stdout.read()


@pytest.fixture(scope='session')
def manifest(tmp_path_factory, home):
    "Of a small run of the page, logged every three steps"

    def make(to):
        r = papermill(
            PAGE,
            to / 'out.ipynb',
            environment(home, RUNS_ROOT=to / 'runs'),
            name='small',
            train_for='30 steps',
            log_every='3 steps',
            save_every='5 steps',
            evaluate_every='10 steps',
        )
        assert r.returncode == 0, r.stderr

    return once(tmp_path_factory, 'small', make) / 'runs/small/manifest.json'


# Given out again


def test_a_trial_that_is_given_out_again(home, metadata, tmp_path):
    """Killed in the middle of training, and when only the rest of the notebook was missing: the
    same command ends as if nobody had disturbed it
    """
    runs, root = tmp_path / 'runs/sweep', tmp_path / 'runs'
    runs.mkdir(parents=True), trial_page(tmp_path / 'trial.ipynb')
    run, alone, notebook = runs / 'x7k2-0003', runs / 'alone', runs / 'x7k2-0003.ipynb'

    def trial(name):
        env = environment(
            home,
            RUNS_ROOT=root,
            PYTHONPATH=f'{ROOT}{os.pathsep}{metadata}',
            WANDB_SWEEP_ID='sweep',
            WANDB_RUN_ID=name,
            WANDB_MODE='offline',
        )
        stays = 'in training, after training' if name == run.name else ''
        return background(
            [
                sys.executable,
                '-m',
                'papermill',
                '--no-progress-bar',
                '--engine',
                'dlframe',
                'trial.ipynb',
                runs / f'{name}.ipynb',
                '-p',
                'stays',
                stays,
            ],
            env,
            tmp_path,
        )

    undisturbed = trial('alone')
    for where, was, cells in (
        ('in training', 'cut short', ['completed'] * 2 + ['running', 'pending']),
        ('after training', 'finished', ['completed'] * 3 + ['running']),
    ):
        process = trial(run.name)
        waiting(lambda: stayed(run, where) or process.poll() is not None)
        assert process.poll() is None, process.stdout.read()
        # papermill and its kernel
        process.kill(), os.kill(recorded(run)['process'], signal.SIGKILL), process.wait()
        waiting(lambda: state(run) == was)
        assert statuses(notebook) == cells
    before = left(run)
    for process in trial(run.name), undisturbed:
        assert process.wait(timeout=PATIENCE) == 0, process.stdout.read()
    # nothing was trained
    assert left(run) == before and 'finished before, after step 30' in notebook.read_text()
    assert statuses(notebook) == ['completed'] * 4 and '30 steps' in notebook.read_text()
    assert numbers(run) == numbers(alone) and weights(run) == weights(alone)
    assert [r['steps'] for r in json.loads((run / 'manifest.json').read_text())['resumed']] == [15]


# Disks


def mounted():
    return subprocess.run(['unshare', '-Urm', 'true'], capture_output=True).returncode == 0


own_mounts = pytest.mark.skipif(
    not (shutil.which('unshare') and mounted()),
    reason='this system lets nobody mount a disk of his own, which `unshare -Urm` would',
)

DISK = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_lost
from dlframe.run import Run
from dlframe.reruns import rerun
from dlframe.specs import read
from dlframe.checkpoints import newest
from dlframe.files import checksums, verify
disk, trouble = Path(sys.argv[1]), sys.argv[4]
os.environ['RUNS_ROOT'] = str(disk/'runs')
fill = {'cls': 'test_lost.Fill', 'disk': str(disk), 'trouble': trouble, 'step': 12}
changes = {'run.name': 'first', 'run.callbacks': [fill]}
said = ''
try: rerun(read(sys.argv[2]), changes, ['test_lost'])
except OSError as e: said = str(e)
run = disk/'runs/first'
print('said:', said)
whole = verify(run/'metrics.csv').read_text()[-1:] == chr(10)
print('step:', newest(run)[1]['counters']['steps'], whole)
test_lost.repair(disk, trouble)
Run.resume(run, packages=['test_lost'])
subprocess.run(['cp', '-r', run, sys.argv[5]], check=True)
"""


class Fill(Part, pl.Callback):
    "A disk that is full, or closed, from a step on"

    def __init__(self, disk, trouble, step):
        self.disk, self.trouble, self.step = Path(disk), trouble, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.counters['steps'] != self.step or trainer.ckpt_path:
            return
        if self.trouble == 'read-only':
            saved = Path(trainer.logger.folder) / 'checkpoints'
            for words in ['--bind', saved, saved], ['-o', 'remount,ro,bind', saved]:
                subprocess.run(['mount', *words], check=True)
        else:
            with open(self.disk / 'filler', 'wb', buffering=0) as f:
                try:
                    while True:
                        f.write(bytes(4096))
                except OSError:
                    pass


def repair(disk, trouble):
    if trouble == 'read-only':
        subprocess.run(['umount', disk / 'runs/first/checkpoints'], check=True)
    else:
        (disk / 'filler').unlink()


def rows(run):
    return [
        ','.join(r.split(',')[:5])
        for r in metrics(run).splitlines()
        if not r.startswith('seconds/')
    ]


@own_mounts
@pytest.mark.parametrize(
    'trouble, why', [('full', 'No space left on device'), ('read-only', 'Read-only file system')]
)
def test_a_disk_that_can_no_longer_be_written_to(trouble, why, manifest, home, tmp_path):
    """The error says which file and why; the last good checkpoint is there; with room again the run
    ends as it would have
    """
    disk, kept = tmp_path / 'disk', tmp_path / 'kept'
    disk.mkdir(), (tmp_path / 'disk.py').write_text(DISK)
    command = (
        f'mount -t tmpfs -o size=8m tmpfs {disk} && exec {sys.executable} {tmp_path}/disk.py '
        f'{disk} {manifest} {ROOT}/tests {trouble} {kept}'
    )
    r = start('unshare', '-Urm', 'sh', '-c', command, env=environment(home), cwd=tmp_path)
    assert r.returncode == 0, r.stdout + r.stderr
    assert re.search(
        rf'said: {disk}/runs/first/\S+ could not be written \({why}; [\d,]+ MB are free there\); '
        r'what was there before is as it was',
        r.stdout,
    ), r.stdout
    assert 'step: 10 True' in r.stdout
    assert rows(kept) == rows(manifest.parent)
    assert (kept / 'checkpoints/model.safetensors').read_bytes() == (
        manifest.parent / 'checkpoints/model.safetensors'
    ).read_bytes()


# To root every folder is open, unless it gives up the right
plain = ['setpriv', '--bounding-set=-dac_override,-dac_read_search'] if os.getuid() == 0 else []


@pytest.mark.skipif(
    bool(plain) and not shutil.which('setpriv'),
    reason='to root every folder is open, and there is no `setpriv` to give that up',
)
@pytest.mark.parametrize('what', ['a new run', 'a run that goes on'])
def test_a_folder_of_somebody_else(what, manifest, home, tmp_path):
    "One line, soon, and nothing has changed"
    folder = tmp_path / 'closed'
    shutil.copytree(manifest.parent, folder / 'runs/first')
    for p in [folder, *folder.rglob('*')]:
        p.chmod(0o555 if p.is_dir() else 0o444)
    before = left(folder)
    words = (
        ['--resume', folder / 'runs/first', 'run.train_for=40 steps']
        if what != 'a new run'
        else [folder / 'runs/first/manifest.json', 'run.name=second']
    )
    r = start(
        *plain,
        sys.executable,
        '-m',
        'dlframe.reruns',
        *words,
        env=environment(home, RUNS_ROOT=folder / 'runs'),
        cwd=tmp_path,
    )
    said = (
        '`folder` must be one that can be written to'
        if what != 'a new run'
        else '`runs_root` must be a folder that can be written to'
    )
    assert (
        r.returncode == 1
        and r.stderr.startswith(f'dlframe-run: {said}, got {folder}/runs')
        and 'Permission denied' in r.stderr
        and r.stderr.count('\n') == 1
    ), r.stderr
    assert left(folder) == before
    for p in [folder, *folder.rglob('*')]:
        p.chmod(0o755)


# Two at once


def test_two_want_one_folder(manifest, home, tmp_path):
    "One wins and the other says so; when the one that has it is killed, a third goes on"
    env, run = environment(home, RUNS_ROOT=tmp_path / 'runs'), tmp_path / 'runs/first'
    two = [
        background(
            [
                sys.executable,
                '-m',
                'dlframe.reruns',
                manifest,
                'run.name=first',
                'run.train_for=10 hours',
            ],
            env,
            tmp_path,
        )
        for _ in range(2)
    ]
    waiting(lambda: any(p.poll() is not None for p in two) and 'train/loss' in metrics(run))
    (loser,) = [p for p in two if p.poll() is not None]
    (winner,) = [p for p in two if p.poll() is None]
    said = loser.communicate()[0]
    assert (
        loser.returncode == 1
        and said.count('\n') == 1
        and re.match('dlframe-run: `(name|folder)` must', said)
    ), said
    words = [sys.executable, '-m', 'dlframe.reruns', '--resume', run, 'run.train_for=30 steps']
    refused = start(*words, env=env, cwd=tmp_path)
    assert refused.returncode == 1
    owner = f'to which process {winner.pid} on '
    assert f'dlframe-run: `folder` must not be in use, got {run}, {owner}' in refused.stderr
    assert state(run) == 'running'
    winner.kill(), winner.communicate()
    assert state(run) == 'cut short'
    steps = newest(run)[1]['counters']['steps']
    words[-1] = f'run.train_for={steps + 20} steps'
    third = start(*words, env=env, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert state(run) == 'finished' and load(run).metrics.index[-1] == steps + 20


# Losses that are not finite


def test_a_run_that_diverges(home, tmp_path):
    """Term, step and rows are named, by the page and by status.json; the last good checkpoint is as
    it was
    """
    r = papermill(
        PAGE,
        tmp_path / 'out.ipynb',
        environment(home, RUNS_ROOT=tmp_path / 'runs'),
        name='wild',
        optimizer='SGD',
        lr='1e6',
        log_every='4 steps',
        save_every='1 steps',
        batch_size='50',
        train_for='60 steps',
    )
    assert r.returncode == 1
    run, last = tmp_path / 'runs/wild', r.stderr.strip().splitlines()[-1]
    found = re.match(
        r'Diverged: `([\w.]+)` must be finite, got .+ at step (\d+), epoch 1, rows ([\d, ]+) and '
        r"30 more of 'train'; the last good checkpoint is that of step (\d+)$",
        last,
    )
    assert found, last
    told, saved = recorded(run), newest(run)[1]
    assert (told['state'], len(told['rows'])) == ('failed', 50) and told['error'] == last
    assert saved['counters']['steps'] == int(found[4]) == int(found[2]) - 1
    assert all(v.isfinite().all() for v in saved['state_dict'].values())
    assert not (run / 'checkpoints/model.safetensors').exists()


def test_batches_are_left_out_and_counted(home, tmp_path):
    r = papermill(
        PAGE,
        tmp_path / 'out.ipynb',
        environment(home, RUNS_ROOT=tmp_path / 'runs'),
        name='careful',
        largest_loss='44.8',
        skip_batches='1000',
        log_every='1 steps',
        train_for='60 steps',
    )
    assert r.returncode == 0, r.stderr
    counted = load(tmp_path / 'runs/careful').metrics['skipped']
    assert counted.iloc[0] == 0 and counted.iloc[-1] >= 1


# Equal runs are equal files, which the group may read


def script(code, *words, **env):
    "Run a program with the classes of `torture`; what it prints, as data"
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    r = subprocess.run(
        python('-c', code, *words),
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path, **env},
        text=True,
        capture_output=True,
    )
    assert r.returncode == 0, r.stdout + r.stderr
    return json.loads(r.stdout.splitlines()[-1])


ONE_RUN = """
import sys
from pathlib import Path
import pytorch_lightning as pl
import torture
from dlframe.triggers import duration
torture.machine(Path(sys.argv[1]))
pl.seed_everything(0, verbose=False)
run = torture.shared()
run.train_for = duration('9 steps')
run.fit()
print('{}')
"""


def test_equal_runs_leave_equal_files(tmp_path):
    "In processes whose hash tables have other orders, a model with shared parts among them"
    runs = []
    for seed in '1', '2':
        (tmp_path / seed).mkdir()
        script(ONE_RUN, tmp_path / seed, PYTHONHASHSEED=seed)
        runs.append(tmp_path / seed / 'runs/shared')
    one, two = runs
    names = {str(p.relative_to(one)) for p in one.rglob('*') if p.is_file()}
    assert names == {str(p.relative_to(two)) for p in two.rglob('*') if p.is_file()}
    # time and process are in the first two, and the sum of the first in the third
    said = {'manifest.json', 'status.json', 'SHA256SUMS'}
    assert {'checkpoints/model.safetensors', 'checkpoints/last.ckpt', 'metrics.csv'} <= names - said
    assert [
        n for n in sorted(names - said) if (one / n).read_bytes() != (two / n).read_bytes()
    ] == []
    manifests = [json.loads((run / 'manifest.json').read_text()) for run in runs]
    for manifest in manifests:
        manifest.pop('made')
    assert json.dumps(manifests[0]) == json.dumps(manifests[1])  # in the same order
    lines = [
        [
            line
            for line in (run / 'SHA256SUMS').read_text().splitlines()
            if not line.endswith('manifest.json')
        ]
        for run in runs
    ]
    assert lines[0] == lines[1]
    assert differences(*(newest(run)[1] for run in runs)) == []


MODES = """
import json, os, stat, sys
from pathlib import Path
import pytorch_lightning as pl
import optuna
import torture
from dlframe.evaluation import PriorSamples
from dlframe.loading import export_hub
from dlframe.loggers import logger
from dlframe.reruns import add_results
from dlframe.run import Run
from dlframe.trials import open_storage
from dlframe.triggers import duration
optuna.logging.set_verbosity(optuna.logging.ERROR)
wrong, seen = [], 0
for mask in 0o022, 0o002, 0o077:
    os.umask(mask)
    root = Path(sys.argv[1])/f'{mask:03o}'
    root.mkdir()
    torture.machine(root)
    run = torture.shared()
    run.train_for, run.logger = duration('9 steps'), logger('tensorboard')
    run.evaluations.append(torture.Evaluate(PriorSamples(4), '4 steps'))
    run.fit()
    Run.resume(run.folder, '12 steps', ['torture'])
    add_results(run.folder, {'test/other': 1.}, ['torture'])
    export_hub(run.folder, root/'exported/model', packages=['torture'])
    for url in None, f'sqlite:///{root}/record.db':
        optuna.create_study(storage=open_storage(root, url), study_name='s')
    for path in [root, *root.rglob('*')]:
        seen += 1
        mode, right = stat.S_IMODE(path.stat().st_mode), (0o777 if path.is_dir() else 0o666) & ~mask
        if mode == right: continue
        wrong.append(f'{path.relative_to(sys.argv[1])} {mode:o} must be {right:o}')
print(json.dumps([seen, wrong]))
"""


@pytest.mark.skipif(os.name != 'posix', reason='modes of files are those of POSIX')
def test_files_have_the_mode_of_the_umask(tmp_path):
    "All that a run, its resumption, an export and a sweep leave behind, folders as well"
    seen, wrong = script(MODES, tmp_path)
    assert wrong == []
    assert seen > 3 * 25
