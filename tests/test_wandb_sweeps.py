"""`wandb sweep` and `wandb agent`, the real ones, against a server on loopback: what a trial says,
how it ends, and that nothing of it is lost
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import test_wandb
import yaml
from experiment import attentive, go, numbers, once, statuses, stayed, trial_page
from limits import PATIENCE
from tree import BIN, ROOT
from tree import run as tool
from wandb_stub import ENTITY, server

from dlframe.checkpoints import newest
from dlframe.status import recorded, state

# `wandb`, whose agent looks more often
PATIENT = (
    'import wandb.wandb_agent as w; w.Agent.POLL_INTERVAL = .5; from wandb.cli.cli import cli; '
    'cli()'
)


@pytest.fixture(scope='session')
def metadata(tmp_path_factory):
    "Where papermill finds the engine"

    def make(to):
        assert tool('python', 'setup.py', '-q', 'egg_info', '--egg-base', to).returncode == 0

    return once(tmp_path_factory, 'metadata', make)


class Sweeps:
    "A folder with a notebook, and a server of W&B"

    def __init__(self, home, metadata, service):
        self.home = home
        self.server = service
        self.stub = service.stub
        self.runs = home / 'runs'
        self.started = []
        self.env = test_wandb.environment(
            home,
            service.url,
            PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}',
            PYTHONPATH=f'{ROOT}{os.pathsep}{metadata}',
            WANDB_DIR=str(home),
            MPLCONFIGDIR=str(metadata / 'fonts'),
            WANDB_AGENT_DISABLE_FLAPPING='true',
            WANDB__FILE_STREAM_TRANSMIT_INTERVAL='1',
        )
        trial_page(home / 'trial.ipynb')
        (home / 'nbs').symlink_to(ROOT / 'nbs')

    def command(self, engine=True):
        "Of the project's sweep files"
        command = yaml.safe_load((ROOT / 'sweeps/vae_beta.yaml').read_text())['command']
        return [c if engine else c.replace('--engine dlframe ', '') for c in command]

    def file(self, program='trial.ipynb', engine=True, **more):
        "A sweep file"
        asked = {
            'project': 'test',
            'program': program,
            'method': 'grid',
            'metric': {'name': 'valid/loss', 'goal': 'minimize'},
            'parameters': {'beta': {'values': [1.0]}},
            'command': self.command(engine),
            **more,
        }
        (self.home / 'sweep.yaml').write_text(yaml.safe_dump(asked))
        return 'sweep.yaml'

    def wandb(self, *words, way=('-c', PATIENT)):
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.started.append(
            subprocess.Popen(
                [sys.executable, *way, *map(str, words)],
                cwd=self.home,
                env=self.env,
                text=True,
                preexec_fn=attentive,
                **pipes,
            )
        )
        return self.started[-1]

    def start(self, file, *queue, **options):
        "Make a sweep and start an agent, which is given these configurations"
        said = self.wandb('sweep', file, **options).communicate(timeout=PATIENCE)[0]
        (name,) = self.stub.sweeps
        assert f'wandb agent {ENTITY}/test/{name}' in said, said
        self.stub.queue += queue
        return self.wandb('agent', f'{ENTITY}/test/{name}', **options)

    def end(self, agent):
        "What it said"
        said = agent.communicate(timeout=PATIENCE)[0]
        assert agent.returncode == 0, said
        return said

    def run(self, i):
        return self.stub.run('test', f'sweep1r{i}')

    def folder(self, i):
        return self.runs / f'sweep1/sweep1r{i}'

    def notebook(self, i):
        return self.folder(i).with_suffix('.ipynb')

    def states(self):
        return [r['state'] for r in self.stub.runs.values()]

    def wait(self, condition, agent):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert agent.poll() is None and time.monotonic() < end, self.states()
            time.sleep(0.05)


@pytest.fixture
def sweeps(tmp_path, metadata):
    with server() as service:
        made = Sweeps(tmp_path, metadata, service)
        yield made
        for process in made.started:
            process.kill(), process.wait()


def test_two_trials_of_the_page(sweeps):
    """A notebook and a run folder for each trial, by its name; numbers stay numbers; and what
    arrived can be loaded by its address
    """
    short = {
        'z_dim': 2,
        'train_for': '20 steps',
        'evaluate_every': '10 steps',
        'encoder_widths': [8],
        'decoder_widths': [8],
        'logger': 'wandb',
    }
    file = sweeps.file('nbs/experiments/train.ipynb', parameters={'lr': {'values': [1e-5, 1e-2]}})
    sweeps.end(
        sweeps.start(file, {'lr': 1e-5, **short}, {'lr': 1e-2, **short}, way=(BIN / 'wandb',))
    )
    assert sweeps.states() == ['finished'] * 2
    assert sorted(p.name for p in (sweeps.runs / 'sweep1').iterdir()) == [
        'sweep1r0',
        'sweep1r0.ipynb',
        'sweep1r1',
        'sweep1r1.ipynb',
    ]
    for i, lr in enumerate((1e-5, 1e-2)):
        told = json.loads((sweeps.folder(i) / 'manifest.json').read_text())
        assert told['parameters']['lr'] == told['optimization']['lr'] == lr and {
            *statuses(sweeps.notebook(i))
        } == {'completed'}
        assert sweeps.run(i)['sweep'] == 'sweep1'
        written = (sweeps.folder(i) / 'metrics.csv').read_bytes()
        assert sweeps.run(i)['files']['metrics.csv'] == written
    elsewhere = sweeps.home / 'elsewhere'
    elsewhere.mkdir()
    asked = [f"load('{ENTITY}/test/sweep1r0')", f"best('{ENTITY}/test/sweeps/sweep1')"]
    said = test_wandb.python(
        test_wandb.READ, *asked, home=elsewhere, url=sweeps.env['WANDB_BASE_URL']
    )[0].splitlines()
    kept = elsewhere / 'runs/wandb' / ENTITY / 'test'
    assert [line.split()[0] for line in said] == [str(kept / 'sweep1r0'), str(kept / 'sweep1r1')], (
        said
    )


@pytest.mark.parametrize(
    'engine, fails, ended',
    [(True, 'training', [1]), (True, 'late', [0, 1]), (False, 'late', [0, 1])],
    ids=['training', 'late', 'late-plain'],
)
def test_a_trial_that_fails(engine, fails, ended, sweeps):
    "In training, and in the last assertion, after W&B was told that the run is finished"
    sweeps.end(sweeps.start(sweeps.file(engine=engine), {'fails': fails, 'logger': 'wandb'}))
    assert sweeps.states() == ['failed'] and sweeps.run(0)['ended'] == ended
    assert state(sweeps.folder(0)) == {'training': 'failed', 'late': 'finished'}[fails]
    assert 'W&B knows that this trial has failed' in sweeps.notebook(0).read_text()


def test_a_trial_that_fails_before_there_is_a_run(sweeps):
    """Before anybody in the kernel could say it, by a parameter that is refused, with a kernel that
    is killed
    """
    sweeps.end(sweeps.start(sweeps.file(), {'fails': 'early'}, {'lr': 'many'}, {'fails': 'killed'}))
    assert sweeps.states() == ['failed'] * 3
    assert [sweeps.run(i)['ended'] for i in range(3)] == [[1]] * 3


def test_a_trial_that_is_stopped(sweeps):
    """By somebody, and by W&B's rule: the checkpoint is newer than that, the notebook is kept,
    nobody gets it again, and the agent goes on
    """
    sent, file = {}, sweeps.file(early_terminate={'type': 'hyperband', 'min_iter': 1})
    base = {'logger': 'wandb', 'lr': 0.01}
    agent = sweeps.start(
        file, {**base, 'stays': 'in training'}, {**base, 'lr': 1e-9, 'stays': 'in training'}, base
    )
    for i in range(2):
        sweeps.wait(lambda: stayed(sweeps.folder(i), 'in training'), agent)
        sent[i] = time.time()
        if not i:
            sweeps.stub.stopped.add('sweep1r0')
    sweeps.end(agent)
    assert sweeps.states() == ['killed', 'killed', 'finished']
    assert sweeps.stub.given == [f'sweep1r{i}' for i in range(3)]
    for i in range(2):
        assert sweeps.run(i)['ended'] == [255]
        assert (sweeps.folder(i) / 'checkpoints/last.ckpt').stat().st_mtime > sent[i] and newest(
            sweeps.folder(i)
        )[1]['counters']['steps'] == 18
        assert recorded(sweeps.folder(i))['signal'] == 'SIGTERM' and statuses(
            sweeps.notebook(i)
        ) == ['completed'] * 2 + ['failed', 'pending']


def test_a_trial_that_is_given_out_again(sweeps):
    """After the warning of a cluster, in training and when only the rest of the notebook was
    missing, until it is whole, here and at W&B
    """
    agent = sweeps.start(sweeps.file(), {'logger': 'wandb', 'stays': 'in training, after training'})
    for where in 'in training', 'after training':
        sweeps.wait(lambda: stayed(sweeps.folder(0), where), agent)
        os.kill(stayed(sweeps.folder(0), where), signal.SIGUSR1)
    sweeps.end(agent)
    assert sweeps.stub.given == ['sweep1r0'] * 3 and sweeps.states() == ['finished']
    assert sweeps.run(0)['ended'] == ['preempting', 1, 0, 'preempting', 1, 0]
    assert statuses(sweeps.notebook(0)) == ['completed'] * 4
    rows = [row['steps'] for row in sweeps.run(0)['history'] if 'valid/loss' in row]
    assert sorted({*rows}) == [0, 10, 20, 30] and [
        int(r['steps']) for r in numbers(sweeps.folder(0)) if r['name'] == 'valid/loss'
    ] == [0, 10, 20, 30]
    assert [
        r['steps'] for r in json.loads((sweeps.folder(0) / 'manifest.json').read_text())['resumed']
    ] == [18]


def test_a_trial_without_a_server(sweeps):
    """It is gone before a trial has come to W&B, and in the middle of training: training goes on,
    and the notebook says how to send what is missing
    """
    agent = sweeps.start(
        sweeps.file(), {'logger': 'wandb'}, {'logger': 'wandb', 'stays': 'in training'}
    )
    for i in range(2):
        sweeps.wait(
            lambda: (
                stayed(sweeps.folder(1), 'in training') and sweeps.run(1)['history']
                if i
                else sweeps.stub.given
            ),
            agent,
        )
        sweeps.server.become('gone')
        if i:
            go(sweeps.folder(1), 'in training')
        sweeps.wait(
            lambda: (
                sweeps.notebook(i).exists() and {*statuses(sweeps.notebook(i))} == {'completed'}
            ),
            agent,
        )
        sweeps.server.become(None)
    assert [state(sweeps.folder(i)) for i in range(2)] == ['finished'] * 2 and numbers(
        sweeps.folder(0)
    ) == numbers(sweeps.folder(1))
    for i in range(2):
        assert 'send it later with `' in sweeps.notebook(i).read_text()
        assert 'wandb sync' in sweeps.notebook(i).read_text()
    assert (len(sweeps.run(1)['history']) > 0) and not sweeps.run(0)['history']


def test_a_failure_that_cannot_be_told(sweeps):
    "Without a server the error is what it was, and soon"
    env = {
        **sweeps.env,
        'WANDB_BASE_URL': 'http://127.0.0.1:9',
        'WANDB_SWEEP_ID': 'sweep',
        'WANDB_RUN_ID': 'r',
    }
    r = subprocess.run(
        [
            sys.executable,
            '-m',
            'papermill',
            '--engine',
            'dlframe',
            'trial.ipynb',
            'out.ipynb',
            '-p',
            'lr',
            'many',
        ],
        cwd=sweeps.home,
        env=env,
        text=True,
        capture_output=True,
    )
    assert r.returncode == 1
    assert r.stderr.splitlines()[-1] == "ParameterError: `lr` must be of type float, got 'many'"
