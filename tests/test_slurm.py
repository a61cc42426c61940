"""The scripts of a cluster: on the real Slurm where it is installed, else on a stand-in; the
summary says on which
"""

import os
import re
import shutil
import subprocess

import pytest
from experiment import environment, numbers, once, weights
from slurm import StandIn, until
from slurm import cluster as start_cluster
from tree import ROOT
from tree import run as tool

from dlframe.checkpoints import newest
from dlframe.status import state

scripts = sorted((ROOT / 'scripts').glob('slurm_*.sh'))
each_script = pytest.mark.parametrize('script', scripts, ids=lambda f: f.name)


def test_there_are_scripts():
    assert [f.stem for f in scripts] == ['slurm_agents', 'slurm_requeue', 'slurm_run']


@pytest.mark.parametrize('script', sorted((ROOT / 'scripts').glob('*.sh')), ids=lambda f: f.name)
def test_syntax(script):
    r = subprocess.run(['bash', '-n', script], capture_output=True, text=True)
    assert (r.returncode, r.stderr) == (0, '')
    assert os.access(script, os.X_OK)


@each_script
def test_what_a_newcomer_must_change(script):
    """Slurm reads options up to the first command; what differs between clusters is marked, line by
    line
    """
    lines = script.read_text().splitlines()
    end = lines.index('set -eu')
    options = [line for line in lines[:end] if line.startswith('#SBATCH')]
    assert all(re.fullmatch(r'#SBATCH --[a-z-]+(=\S+)?', option) for option in options)
    assert not any(line.startswith('#SBATCH') for line in lines[end:])
    marked = {
        re.match(r'(?:#SBATCH --|export )([\w-]+)', lines[i + 1])[1]
        for i, line in enumerate(lines)
        if line.startswith('# CHANGE: ')
    }
    assert marked >= {'partition', 'gres', 'cpus-per-task', 'mem', 'time', 'PATH', 'DATA_ROOT'}
    assert {o.split('=')[0].removeprefix('#SBATCH --') for o in options} - marked == {
        'job-name',
        'output',
        *({'no-requeue'} if script.stem == 'slurm_run' else {'open-mode', 'requeue'}),
    }
    assert (
        f'sbatch scripts/{script.name} ' in lines[3]
        or f'sbatch scripts/{script.name} ' in lines[2]
        or f'sbatch scripts/{script.name} ' in lines[5]
    )


# A cluster


@pytest.fixture(scope='module')
def shared_cluster(tmp_path_factory):
    cluster = start_cluster(tmp_path_factory.mktemp('cluster'))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(shared_cluster, record_property):
    record_property('slurm', shared_cluster.called)
    return shared_cluster


@pytest.fixture
def stand_in(tmp_path):
    "Beside the real one too: what the tests rest on where there is no other"
    cluster = StandIn(tmp_path / 'stand-in', '')
    yield cluster
    cluster.stop()


class Project:
    "A project's root, with programs of its own in `.venv`, and jobs that start there"

    def __init__(self, cluster, folder, **more):
        self.cluster = cluster
        self.folder = folder / 'a project'
        self.runs = folder / 'a project/runs'
        shutil.copytree(ROOT / 'scripts', self.folder / 'scripts')
        (self.folder / 'nbs').symlink_to(ROOT / 'nbs')
        self.runs.mkdir()
        (folder / 'home').mkdir()
        self.env = environment(folder / 'home', SLURM_CONF='', **more)
        self.env = {k: v for k, v in self.env.items() if not k.startswith(('SLURM', 'SBATCH'))}

    def program(self, name, text):
        "A program of the project"
        at = self.folder / '.venv/bin' / name
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(f'#!/bin/bash\n{text}\n')
        at.chmod(0o755)

    def sbatch(self, *words):
        job, said = self.cluster.sbatch(*words, cwd=self.folder, env=self.env)
        assert job and not said, said
        return job

    def logs(self):
        return ''.join(p.read_text() for p in sorted(self.runs.glob('slurm-*.log')))


@pytest.fixture
def project(cluster, tmp_path):
    return Project(cluster, tmp_path)


def said(project, job, state='COMPLETED'):
    "Words of the program that a job has started, and what else is in its log"
    assert {s for s, _ in project.cluster.wait(job)} == {state}
    return project.logs().splitlines()


WORDS = (
    'for w in "$(basename "$0")" "$@"; do echo "$w"; done; echo "$OMP_NUM_THREADS '
    '$SLURM_CPUS_PER_TASK"'
)

# What is started


def started_by_agents(project):
    for name in 'wandb', 'dlframe-agent':
        project.program(name, WORDS)
    assert said(project, project.sbatch('scripts/slurm_agents.sh', 'us/dlframe/abc')) == 4 * [
        'wandb',
        'agent',
        '--forward-signals',
        'us/dlframe/abc',
        '4 4',
    ]
    for log in project.runs.glob('*.log'):
        log.unlink()
    assert said(
        project,
        project.sbatch('scripts/slurm_agents.sh', 'sweeps/a b.yaml', 'runs/b', '--trials', '3'),
    ) == 4 * ['dlframe-agent', 'sweeps/a b.yaml', 'runs/b', '--trials', '3', '4 4']


def test_agents_start(project):
    started_by_agents(project)


def test_agents_start_on_the_stand_in(stand_in, tmp_path):
    started_by_agents(Project(stand_in, tmp_path))


def test_an_agent_that_fails(project):
    "Its status is that of the job, however soon it ends"
    project.program('wandb', 'exit 3')
    (project.folder / 'slow').write_text('kill() { sleep .5; builtin kill "$@"; }\n')
    project.env['BASH_ENV'] = str(project.folder / 'slow')
    said(project, project.sbatch('scripts/slurm_agents.sh', 'us/dlframe/abc'), 'FAILED')


@pytest.mark.parametrize(
    'script, usage',
    [
        ('agents', 'entity/project/sweep_id, or sweeps/FILE.yaml'),
        ('run', 'NAME [-p'),
        ('requeue', 'NAME [-p'),
    ],
)
def test_usage(script, usage, project):
    lines = said(project, project.sbatch(f'scripts/slurm_{script}.sh'), 'FAILED')
    assert len(lines) == (4 if script == 'agents' else 1)
    assert all(f'usage: sbatch scripts/slurm_{script}.sh {usage}' in line for line in lines)


def runs_started(project):
    page, more, runs = 'nbs/experiments/train.ipynb', ['-p', 'train_for', '20 epochs'], project.runs
    project.program('papermill', WORDS)

    def started(script):
        for log in runs.glob('*.log'):
            log.unlink()
        job = project.sbatch(f'scripts/slurm_{script}.sh', 'first', *more)
        words = said(project, job)
        assert words[:4] == ['papermill', '--engine', 'dlframe', page] and words[-1] == '4 4'
        return [w.replace(f'-{job}.', '-7.') for w in words[4:-1]]

    once = [f'{runs}/first.ipynb', *more, '-r', 'name', 'first']
    again = [f'{runs}/first-7.0.ipynb', *more, '-r', 'name', 'first']
    assert (started('run'), started('requeue')) == (once, again)
    (runs / 'first').mkdir()
    # killed before there was a run; the page takes the folder
    assert started('requeue') == again
    (runs / 'first/manifest.json').touch()
    assert started('requeue') == [*again[:-3], '-r', 'resume', f'{runs}/first', *again[-3:]]
    assert started('run') == once  # which refuses a name that is taken


def test_runs_start(project):
    runs_started(project)


def test_runs_start_on_the_stand_in(stand_in, tmp_path):
    runs_started(Project(stand_in, tmp_path))


# Told that the time is over

WAITS = """trap 'echo told; exit 1' {signal}
[ -z "${{SLURM_RESTART_COUNT:-}}" ] || {{ echo "again, with $*"; exit 0; }}
echo working
for i in $(seq 36000); do sleep .1; done"""


def told_in_time(project):
    "Each is told while there is time, ends, and is queued again, with the same words"
    project.program(
        'papermill',
        WAITS.format(signal='USR1').replace(
            'echo told;', 'echo told; scontrol requeue "$SLURM_JOB_ID";'
        ),
    )
    project.program('dlframe-agent', WAITS.format(signal='TERM'))
    jobs = [
        project.sbatch('scripts/slurm_requeue.sh', 'first'),
        project.sbatch('scripts/slurm_agents.sh', 'sweeps/grid.yaml'),
    ]
    until(lambda: project.logs().count('working') == 5)
    for job in jobs:
        project.cluster.out_of_time(job)
    assert {end for job in jobs for end in project.cluster.wait(job)} == {('COMPLETED', 1)}
    lines = project.logs().splitlines()
    assert (
        lines.count('told'),
        lines.count('again, with sweeps/grid.yaml'),
        sum(line.startswith('again, with --engine dlframe nbs/') for line in lines),
    ) == (5, 4, 1)


def test_told_in_time(project):
    told_in_time(project)


def test_told_in_time_on_the_stand_in(stand_in, tmp_path):
    told_in_time(Project(stand_in, tmp_path))


def test_agents_are_cancelled(project):
    "The agent is waited for, though all of the job was told to go; and it is not queued again"
    project.program(
        'wandb',
        "trap 'sleep 1; echo saved; exit 0' TERM; echo working; for i in $(seq 36000); do sleep "
        '.1; done',
    )
    job = project.sbatch('scripts/slurm_agents.sh', 'us/dlframe/abc')
    until(lambda: project.logs().count('working') == 4)
    project.cluster.cancel(job)
    assert all(restarts == 0 for _, restarts in project.cluster.wait(job))
    until(lambda: project.logs().count('saved') == 4)


# Training


@pytest.fixture(scope='session')
def metadata(tmp_path_factory):
    "Where papermill finds the engine"

    def make(to):
        assert tool('python', 'setup.py', '-q', 'egg_info', '--egg-base', to).returncode == 0

    return once(tmp_path_factory, 'metadata', make)


def test_a_run_that_is_requeued_ends_as_one_that_is_not(cluster, metadata, tmp_path):
    """Told in the middle, as all of its step is, it saves and is queued again; then somebody takes
    its place; it goes on, and ends with the same numbers and weights, bit for bit
    """
    project = Project(cluster, tmp_path, PYTHONPATH=f'{ROOT}{os.pathsep}{metadata}')
    length = ['-p', 'train_for', '100 epochs', '-p', 'save_every', '1 second']
    cut, whole = project.runs / 'cut', project.runs / 'whole'
    job = project.sbatch('--cpus-per-task=1', 'scripts/slurm_requeue.sh', 'cut', *length)

    def steps():
        return (
            newest(cut)[1]['counters']['steps'] if (cut / 'checkpoints/last.ckpt').exists() else 0
        )

    until(steps)
    cluster.warn(job)
    until(lambda: state(cut) == 'interrupted')
    told = steps()
    plain = project.sbatch('--cpus-per-task=1', 'scripts/slurm_run.sh', 'whole', *length)
    cluster.again(job, 1)
    until(lambda: steps() > told)
    cluster.requeue(job)
    assert (cluster.wait(job), cluster.wait(plain)) == ([('COMPLETED', 2)], [('COMPLETED', 0)]), (
        project.logs()
    )
    first, last = ((project.runs / f'cut-{job}.{i}.ipynb').read_text() for i in (0, 2))
    assert f'stopped after step {told}, at ' in first and 0 < told < 1000
    assert re.search(r'validation loss \S+ -> \S+ nats; everything', last)
    assert state(cut) == state(whole) == 'finished'
    assert weights(cut) == weights(whole) and numbers(cut) == numbers(whole)
