"""Agents without an account: many at once, killed, interrupted, apart; each trial ends once, and
what was begun goes on
"""

import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from experiment import PAGE, attentive, environment, left, numbers, weights
from limits import PATIENCE
from optuna.trial import TrialState
from tree import BIN, ROOT

from dlframe import agent as agent_module
from dlframe.agent import cores
from dlframe.loading import sought
from dlframe.status import state
from dlframe.sweeps import read_sweep
from dlframe.trial_table import trials
from dlframe.trials import Agents, Trials

LIGHT = ['${env}', sys.executable, str(ROOT / 'tests/trial.py'), '30', '${program}', '${args_json}']


def sweep_file(folder, command=LIGHT, name='beta', **changes):
    "A sweep of light trials, in a folder of its own with a notebook"
    folder.mkdir(parents=True, exist_ok=True)
    page = {
        'cells': [
            {
                'cell_type': 'code',
                'metadata': {'tags': ['parameters']},
                'source': 'beta: float = 1.',
            }
        ],
        'metadata': {},
        'nbformat': 4,
        'nbformat_minor': 5,
    }
    (folder / 'page.ipynb').write_text(json.dumps(page))
    given = {
        'program': 'page.ipynb',
        'method': 'grid',
        'metric': {'name': 'valid/loss', 'goal': 'minimize'},
        'parameters': {'beta': {'values': [float(b) for b in range(6)]}},
        'command': command,
        **changes,
    }
    (folder / f'{name}.yaml').write_text(
        json.dumps({k: v for k, v in given.items() if v is not None})
    )
    return folder / f'{name}.yaml'


def start(file, *words, home=None, **variables):
    "An agent, in the folder of its file; its lines go to a file"
    env = environment(home or file.parent, **variables)
    with open(file.parent / 'said', 'ab') as said:
        return subprocess.Popen(
            [str(BIN / 'dlframe-agent'), file.name, *map(str, words)],
            cwd=file.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            preexec_fn=attentive,
        )


def said(file):
    return (file.parent / 'said').read_text()


def record(file, folder, **options):
    "What the record of a sweep holds, read as an agent that takes nothing"
    with Agents(folder) as me:
        return Trials(read_sweep(file, file.parent), me, folder, **options)


def told(folder):
    "What each trial told, by the id of its run"
    return {
        f.parent.name: [json.loads(line) for line in f.read_text().splitlines()]
        for f in folder.glob('*/told')
    }


def until(true, every=0.02):
    "Wait for something that must come"
    end = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < end, 'it did not come'
        time.sleep(every)
    return found


def finish(agents):
    "Exit statuses of agents that must come to an end"
    end = time.monotonic() + PATIENCE
    try:
        return [a.wait(max(0.1, end - time.monotonic())) for a in agents]
    finally:
        for a in agents:
            a.poll() is None and a.kill()


def whole(file, folder, n, **options):
    "Every trial ended once, with a value; none is stuck, lost, doubled; what was killed went on"
    found, history = record(file, folder, **options).all(), told(folder)
    assert Counter(t.state for t in found) == {TrialState.COMPLETE: n}, found
    assert sorted(t.user_attrs['config']['beta'] for t in found) == [float(b) for b in range(n)]
    assert len(history) == n and not any(
        'doubled' in line for lines in history.values() for line in lines
    )
    assert all([('end' in line) for line in lines].count(True) == 1 for lines in history.values())
    for lines in history.values():
        starts = [line['start'] for line in lines if 'start' in line]
        assert starts == sorted(starts) and starts[0] == 0
    return history


def test_a_storm(tmp_path, record_property):
    """Four agents, forty trials, ten kills: of an agent alone, or of the trial as well, as when a
    machine dies
    """
    file = sweep_file(tmp_path, parameters={'beta': {'values': [float(b) for b in range(40)]}})
    folder = tmp_path / 'runs/beta'
    chance = random.Random(0)
    agents, victims = [start(file, folder, '--patience', 5) for _ in range(4)], []
    while len(victims) < 10:
        place, process = until(lambda: at_work(agents, folder, chance))
        agents[place].kill(), agents[place].wait()
        if chance.random() < 0.5:
            kill(process)
        victims.append(process)
        agents[place] = start(file, folder, '--patience', 5)
    assert finish(agents) == [0] * 4
    history = whole(file, folder, 40)
    again = [lines for lines in history.values() if sum('start' in line for line in lines) > 1]
    assert {line['process'] for lines in again for line in lines if 'start' in line} >= {*victims}
    # none began anew
    assert sum(max(line.get('start', 0) for line in lines) > 0 for lines in again) == len(again)
    record_property('storm', f'{len(victims)} agents killed, {len(again)} trials went on')


def at_work(agents, folder, chance):
    """An agent, and its trial that has logged something: one of several, by chance, or all would
    hit the one that is there first, and ten deaths of a trial are enough
    """
    begun = [
        lines[-1]['process']
        for run, lines in told(folder).items()
        if lines and 'start' in lines[-1] and (folder / run / 'metrics.csv').exists()
    ]
    found = [
        (place, process)
        for process in begun
        for place, agent in enumerate(agents)
        if parent(process) == agent.pid and agent.poll() is None
    ]
    return chance.choice(found) if len(found) > 1 else None


def parent(process):
    try:
        return int(Path(f'/proc/{process}/stat').read_text().rsplit(')', 1)[1].split()[1])
    except OSError:
        return None


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def test_ten_at_once(tmp_path):
    "Ten agents that find no folder yet make it together"
    file = sweep_file(tmp_path, parameters={'beta': {'values': [float(b) for b in range(20)]}})
    folder = tmp_path / 'runs/beta'
    assert finish([start(file, folder) for _ in range(10)]) == [0] * 10
    history = whole(file, folder, 20)
    assert all(len(lines) == 2 for lines in history.values())
    assert re.search(
        r'20 of 20 done, 0 running, best valid/loss 0\.0\d+ \(\w{4}-0000, by last values\)',
        said(file),
    )


@pytest.mark.parametrize(
    'number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name
)
def test_asked_to_go(tmp_path, number):
    "Trials save, are given back, and the next agent goes on with them"
    file, folder = sweep_file(tmp_path), tmp_path / 'runs/beta'
    agent = start(file, folder, '--devices', 'cpu,cpu')
    until(lambda: [*map(bool, told(folder).values())] == [True] * 2)
    agent.send_signal(number)
    assert agent.wait(PATIENCE) == 128 + number
    assert sorted(t.state.name for t in record(file, folder).all()) == ['WAITING'] * 2
    assert all('stopped' in lines[-1] for lines in told(folder).values())
    assert f'resume with: dlframe-agent beta.yaml {folder}' in said(
        file
    ) and '2 trials save and stop' in said(file)
    assert finish([start(file, folder)]) == [0]
    assert sum(len(lines) > 2 for lines in whole(file, folder, 6).values()) == 2
    assert (said(file).count(' begins: '), said(file).count(' goes on: ')) == (6, 2)


ASKED = """
import signal, sys
from pathlib import Path
from dlframe.agent import Agent
from dlframe.sweeps import read_sweep
from dlframe.trials import Agents, Trials
class Asked(Trials):
    def take(self):
        signal.raise_signal(signal.SIGTERM)
        return super().take()
sweep, folder = read_sweep(Path(sys.argv[1])), Path(sys.argv[2])
with Agents(folder) as me: code = Agent(sweep, folder, Asked(sweep, me, folder), ['cpu']*3).run()
sys.exit(code)
"""


def test_asked_while_it_takes_a_trial(tmp_path):
    "It begins no other one, and this one, which it did not have yet when it was asked, is told too"
    file = sweep_file(tmp_path, ['sh', '-c', 'exec sleep 3600', '${program}', '${args_json}'])
    folder = tmp_path / 'runs/beta'
    r = subprocess.run(
        [sys.executable, '-c', ASKED, file.name, folder],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 128 + signal.SIGTERM, r.stdout + r.stderr
    assert [t.state.name for t in record(file, folder).all()] == ['WAITING']


@pytest.mark.parametrize(
    'number, asked',
    [(signal.SIGUSR1, 'requeue 7\n'), (signal.SIGTERM, '')],
    ids=lambda x: getattr(x, 'name', ''),
)
def test_warned_by_slurm(tmp_path, number, asked):
    """The agent's job starts again once the trial has been given back; not if it was told to go for
    good
    """
    file, folder = sweep_file(tmp_path), tmp_path / 'runs/beta'
    (tmp_path / 'bin').mkdir(), (tmp_path / 'asked').touch()
    (tmp_path / 'bin/scontrol').write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / 'bin/scontrol').chmod(0o755)
    agent = start(
        file,
        folder,
        SLURM_JOB_ID=7,
        SLURM_JOB_NAME='agents',
        PATH=f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}',
    )
    until(lambda: any(told(folder).values()))
    agent.send_signal(number)
    assert agent.wait(PATIENCE) == 128 + number
    assert (tmp_path / 'asked').read_text() == asked and [
        t.state.name for t in record(file, folder).all()
    ] == ['WAITING']


def test_an_agent_that_is_to_stay(tmp_path):
    "Started with `nohup`, it hears nothing of a terminal that is closed"
    file, folder = sweep_file(tmp_path), tmp_path / 'runs/beta'
    agent = subprocess.Popen(
        ['nohup', str(BIN / 'dlframe-agent'), file.name],
        cwd=tmp_path,
        env=environment(tmp_path, RUNS_ROOT=tmp_path / 'runs'),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: any(told(folder).values()))
    agent.send_signal(signal.SIGHUP)
    assert finish([agent]) == [0]
    assert all(len(lines) == 2 for lines in whole(file, folder, 6).values())


def test_asked_twice(tmp_path):
    "A trial that does not listen is killed, and given back all the same"
    file = sweep_file(
        tmp_path,
        [
            'sh',
            '-c',
            'trap "" TERM; mkdir -p "$RUNS_ROOT/$WANDB_SWEEP_ID/$WANDB_RUN_ID"; while :; do '
            'sleep .1; done',
            '${program}',
            '${args_json}',
        ],
    )
    folder = tmp_path / 'runs/beta'
    agent = start(file, folder)
    until(lambda: list(folder.glob('*-0000')))
    agent.send_signal(signal.SIGINT)
    until(lambda: 'once more kills' in said(file))
    assert agent.poll() is None
    agent.send_signal(signal.SIGINT)
    assert agent.wait(PATIENCE) == 130
    assert [t.state.name for t in record(file, folder).all()] == ['WAITING']


@pytest.mark.hangs_after(200)
def test_asked_while_a_trial_starts(tmp_path, monkeypatch, capsys):
    "A trial whose process has just begun, and is not yet among the jobs, is asked to stop"

    class Interrupted(agent_module.Job):
        def __init__(self, *args):
            super().__init__(*args)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(agent_module, 'Job', Interrupted)
    # whoever started the tests may have made them ignore it (`nohup`, `&`)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    file = sweep_file(
        tmp_path, ['sh', '-c', 'while :; do sleep .1; done', '${program}', '${args_json}']
    )
    folder = tmp_path / 'runs/beta'
    folder.mkdir(parents=True)
    sweep = read_sweep(file, file.parent)
    with Agents(folder) as agents:
        agent = agent_module.Agent(
            sweep, folder, Trials(sweep, agents, folder), [''], math.inf, True
        )
        status = agent.run()
    signal.signal(signal.SIGINT, before)
    assert status == 130
    assert '1 trials save and stop; once more kills them' in capsys.readouterr().out
    assert [t.state.name for t in record(file, folder).all()] == ['WAITING']


def test_devices_and_threads(tmp_path):
    "One trial at a time on each device; the cores are shared by all trials of the machine"
    file, folder = sweep_file(tmp_path), tmp_path / 'runs/beta'
    assert finish([start(file, folder, '--devices', '0,0,1', OMP_NUM_THREADS='')]) == [0]
    starts = [
        line for lines in whole(file, folder, 6).values() for line in lines if 'start' in line
    ]
    assert {line['device'] for line in starts} == {'0', '1'} and sum(
        line['device'] == '0' for line in starts
    ) > sum(line['device'] == '1' for line in starts)
    assert {line['threads'] for line in starts} == {str(max(1, cores() // 3))}


def test_so_many_trials(tmp_path):
    file, folder = sweep_file(tmp_path), tmp_path / 'runs/beta'
    assert finish([start(file, folder, '--trials', 2, '--no-wait', OMP_NUM_THREADS='')]) == [0]
    assert len(record(file, folder).all()) == 2
    # it was alone
    assert {
        line['threads'] for lines in told(folder).values() for line in lines if 'start' in line
    } == {str(cores())}


def test_a_shared_database(tmp_path):
    """Agents with folders of their own, as on machines without a common one: what a dead one had is
    begun anew elsewhere
    """
    files = [sweep_file(tmp_path / where) for where in ('here', 'there')]
    url = f'sqlite:///{tmp_path}/record.db'
    folders = [file.parent / 'runs/beta' for file in files]
    first = start(files[0], folders[0], DLFRAME_STORAGE=url)
    until(lambda: told(folders[0]))
    first.kill(), first.wait()
    (dead,) = told(folders[0])
    assert finish([start(files[1], folders[1], '--storage', url, '--patience', 3)]) == [0]
    whole(files[1], folders[1], 6, storage=url)
    assert told(folders[1])[dead][0]['start'] == 0
    assert not (folders[0] / 'journal.log').exists() and url not in said(files[1])


apart = ['unshare', '-r', '-n', '-u']


@pytest.mark.skipif(
    not shutil.which('unshare')
    or subprocess.run([*apart, 'true'], capture_output=True).returncode != 0,
    reason='this system does not let a user make network namespaces',
)
def test_two_machines(tmp_path):
    """Agents in network namespaces of their own, with names of their own, which have nothing in
    common but a folder; one is killed
    """
    file = sweep_file(tmp_path, parameters={'beta': {'values': [float(b) for b in range(10)]}})
    folder = tmp_path / 'runs/beta'

    def machine(name):
        words = [
            'sh',
            '-c',
            f'hostname {name}; exec "$0" "$@"',
            str(BIN / 'dlframe-agent'),
            file.name,
            str(folder),
            '--patience',
            '3',
        ]
        with open(file.parent / 'said', 'ab') as out:
            return subprocess.Popen(
                [*apart, *words],
                cwd=tmp_path,
                env=environment(tmp_path),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    agents = [machine('alpha'), machine('omega')]
    until(
        lambda: (
            {f.name.split(':')[0] for f in folder.glob('.agents/*.lock')} >= {'alpha', 'omega'}
            and len(told(folder)) >= 2
        )
    )
    agents[0].kill(), agents[0].wait()
    assert finish(agents[1:]) == [0]
    history = whole(file, folder, 10)
    assert sum(sum('start' in line for line in lines) > 1 for lines in history.values()) == 1


def test_a_search_learns(tmp_path):
    "Bayes, with nested parameters, to a target, by three agents; no draw is the same"
    file = sweep_file(
        tmp_path,
        [*LIGHT[:3], '3', *LIGHT[4:]],
        method='bayes',
        run_cap=60,
        metric={'name': 'valid/loss', 'goal': 'minimize', 'target': 0.5},
        parameters={'beta': {'min': 0.0, 'max': 10.0}},
    )
    folder = tmp_path / 'runs/beta'
    assert finish([start(file, folder) for _ in range(2)]) == [0] * 2
    found = record(file, folder)
    betas = [t.user_attrs['config']['beta'] for t in found.all()]
    assert len({*betas}) == len(betas) < 60 and found.best().value <= 0.5


@pytest.mark.parametrize('by, value, beta', [('last', 2.0, 2.0), ('best', 1.0, 1.0)])
def test_one_value_for_all(tmp_path, by, value, beta):
    """Losses 5, 1, 4 and 5, 2, 2: agent, record, report and the sweep's file agree on which is the
    best, and say by what
    """
    shell = (
        'd="$RUNS_ROOT/$WANDB_SWEEP_ID/$WANDB_RUN_ID" && mkdir -p "$d" && echo \'{"parameters": '
        '{}}\' > "$d/manifest.json" && case "$1" in *1.0*) v="5 1 4";; *) v="5 2 2";; esac; s=0; '
        'echo name,value,steps > "$d/metrics.csv"; for x in $v; do echo "valid/loss,$x,$s" >> '
        '"$d/metrics.csv"; s=$((s+1)); done'
    )
    file = sweep_file(
        tmp_path,
        ['sh', '-c', shell, '${program}', '${args_json}'],
        parameters={'beta': {'values': [1.0, 2.0]}},
    )
    folder = tmp_path / 'runs/beta'
    assert finish([start(file, folder, *([] if by == 'last' else ['--by', by]))]) == [0]
    found, table = record(file, folder), trials(folder)
    (first,) = (t for t in found.all() if t.user_attrs['config']['beta'] == beta)
    assert (found.by, found.best().number, found.best().value) == (by, first.number, value)
    assert (
        said(file).splitlines()[-1]
        == f'2 of 2 done, 0 running, best valid/loss {value:g} ({found.run(first.number)}, by '
        f'{by} values)'
    )
    assert (table.index[0], table['valid/loss'].iloc[0], table.attrs['by'], sought(folder).by) == (
        found.run(first.number),
        value,
        by,
        by,
    )
    # by one or the other
    assert finish([start(file, folder, '--by', 'best' if by == 'last' else 'last')]) == [1]


@pytest.mark.parametrize(
    'changes, said',
    [
        (
            {'metric': {'name': 'valid/los', 'goal': 'minimize'}},
            'valid/los was never logged in .*metrics.csv, which has valid/loss; did you mean '
            'valid/loss?',
        ),
        (
            {'command': ['sh', '-c', 'kill -KILL $$', '${program}', '${args_json}']},
            'it died of SIGKILL',
        ),
    ],
    ids=lambda x: None,
)
def test_a_trial_fails(tmp_path, changes, said):
    "With its reason; and where all fail, the agent says so and stops"
    file = sweep_file(tmp_path, **{'command': [*LIGHT[:3], '2', *LIGHT[4:]], **changes})
    folder = tmp_path / 'runs/beta'
    assert finish([start(file, folder)]) == [1]
    found = record(file, folder).all()
    assert [t.state.name for t in found] == ['FAIL'] * 3
    assert all(re.search(said, t.user_attrs['reason']) for t in found), found[0].user_attrs[
        'reason'
    ]


@pytest.mark.parametrize(
    'changes, words, answer',
    [
        ({'parametres': {}}, [], 'beta.yaml: `sweep file` must be one of .*'),
        (
            {'parameters': {'bta': {'value': 1}}},
            [],
            "beta.yaml: `parameters` must be one of 'beta', got 'bta'; did you mean 'beta'?",
        ),
        (
            {'parameters': {'beta': {'min': 2.0, 'max': 1.0}}, 'method': 'random'},
            [],
            'beta.yaml: `parameters.beta.min` must be less than max, 1.0, got 2.0',
        ),
        (
            {'metric': None, 'method': 'bayes'},
            [],
            'beta.yaml: `metric` must be given for method bayes, got none',
        ),
        (
            {'command': ['${env}', 'no-such-program', '${program}', '${args_json}']},
            [],
            "`command[1]` must be a program that this machine has, got 'no-such-program'",
        ),
        (
            {'program': 'pge.ipynb'},
            [],
            "beta.yaml: `program` must be a notebook in ., got 'pge.ipynb', which is not there",
        ),
        ({}, ['--devices', 'x'], '`devices` must be .*'),
        (
            {},
            ['--storage', 'sqlite:////no/such/place.db'],
            '`storage` must be a record of trials that can be opened, got .*',
        ),
    ],
    ids=lambda x: None,
)
def test_refused(tmp_path, changes, words, answer):
    "In one line, before anything starts"
    file = sweep_file(tmp_path, **changes)
    before = left(tmp_path)
    assert finish([start(file, *words, RUNS_ROOT=tmp_path / 'runs')]) == [1]
    (line,) = [x for x in said(file).splitlines() if not x.startswith('  ')]
    pattern = re.sub(r'\\\.\\\*', '.*', re.escape(answer))
    assert re.fullmatch(f'dlframe-agent: {pattern}', line), line
    assert not list(tmp_path.glob('**/told'))
    assert words or left(tmp_path).keys() - before.keys() == {tmp_path / 'said'}


def test_a_database_that_goes_and_comes(tmp_path):
    "A trial goes on while the record is out of reach, and its end is written down when it is back"
    database, away = tmp_path / 'record.db', tmp_path / 'away.db'
    file = sweep_file(
        tmp_path, [*LIGHT[:3], '120', *LIGHT[4:]], parameters={'beta': {'values': [1.0]}}
    )
    folder = tmp_path / 'runs/beta'
    agent = start(file, folder, '--storage', f'sqlite:///{database}', '--patience', 30)
    until(lambda: any(told(folder).values()))
    database.rename(away), database.mkdir()
    until(lambda: 'the record is out of reach, trying again' in said(file))
    until(lambda: any('end' in line for lines in told(folder).values() for line in lines))
    assert agent.poll() is None
    database.rmdir(), away.rename(database)
    assert finish([agent]) == [0]
    (trial,) = record(file, folder, storage=f'sqlite:///{database}').all()
    starts = next(iter(told(folder).values()))
    assert trial.state == TrialState.COMPLETE
    assert starts[0]['start'] == 0 and len(starts) == 2


# Notebooks, as the sweep files of the project run them


@pytest.fixture(scope='module')
def notebooks(tmp_path_factory):
    "A sweep of the train page as people start it, which somebody killed in the middle of a trial"
    home = tmp_path_factory.mktemp('home')
    sweep = {
        'program': PAGE,
        'method': 'grid',
        'metric': {'name': 'valid/loss', 'goal': 'minimize'},
        'parameters': {
            'beta': {'value': 1e-5},
            'lr': {'values': [1e-3, 1e6]},
            'train_for': {'value': '12000 samples'},
            'save_every': {'value': '2 steps'},
        },
        'command': read_sweep(ROOT / 'sweeps/vae_beta.yaml', ROOT).command,
    }
    (home / 'beta.yaml').write_text(json.dumps(sweep))

    def run(*words):
        with open(home / 'said', 'ab') as out:
            return subprocess.Popen(
                [
                    str(BIN / 'dlframe-agent'),
                    str(home / 'beta.yaml'),
                    str(home / 'runs/beta'),
                    *words,
                ],
                cwd=ROOT,
                env=environment(home),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=attentive,
            )

    agent = run()
    until(
        lambda: (
            any(
                'train/loss' in f.read_text() or f.read_text().count('\n') > 3
                for f in home.glob('runs/beta/*-0000/metrics.csv')
            )
            and list(home.glob('runs/beta/*-0000/checkpoints/last.ckpt'))
        ),
        every=0.005,
    )
    agent.kill(), agent.wait()
    (killed,) = home.glob('runs/beta/*-0000')
    until(lambda: state(killed) != 'running')
    left_off = json.loads((killed / 'status.json').read_text())
    assert finish([run('--devices', 'cpu,cpu')]) == [0]
    return home, killed, left_off


def test_notebooks(notebooks):
    """One trial finishes, which was killed, in its own folder; one diverges, and says so; each
    notebook lies beside its run
    """
    home, killed, left_off = notebooks
    folder = home / 'runs/beta'
    with Agents(folder) as me:
        found = Trials(read_sweep(home / 'beta.yaml', ROOT), me, folder).all()
    assert [t.state.name for t in found] == ['COMPLETE', 'FAIL'], (home / 'said').read_text()
    for t in found:
        run = folder / t.user_attrs['run']
        # not the text '1e-05'
        assert json.loads((run.with_suffix('.ipynb')).read_text())['cells']
        assert json.loads((run / 'manifest.json').read_text())['parameters']['beta'] == 1e-5
    assert (
        'exit status 1: Diverged: `loss` must be finite, got nan at step 2'
        in found[1].user_attrs['reason']
    )
    assert found[0].user_attrs['run'] == killed.name and left_off['state'] != 'finished'
    assert json.loads((killed / 'manifest.json').read_text())['resumed'][0]['steps'] > 0


def test_a_notebook_that_was_killed_ends_as_one_that_was_not(notebooks, tmp_path):
    home, killed, _ = notebooks
    r = subprocess.run(
        [
            'papermill',
            '--engine',
            'dlframe',
            PAGE,
            str(tmp_path / 'whole.ipynb'),
            '-f',
            str(killed.parent / '.trials' / killed.name / 'config.json'),
            '-p',
            'name',
            'whole',
        ],
        cwd=ROOT,
        env=environment(home, RUNS_ROOT=tmp_path),
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr[-2000:]
    assert numbers(killed) == numbers(tmp_path / 'whole') and weights(killed) == weights(
        tmp_path / 'whole'
    )
