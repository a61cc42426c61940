"""What a sweep costs besides its trials: measured, and reckoned for a thousand agents

`python benchmarks/sweeps.py`; --storage URL adds a database.

1. Trials that do nothing (`true`), by several agents at once: how long each takes, and how that
   grows.
2. What an agent does with the record for one trial, without starting anything: at 100, 1,000 and
   10,000 trials.
3. On a simulated clock, a thousand agents against one journal or a database, with the times of 2
   and with those of slower disks.
"""

import argparse
import heapq
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

from dlframe.sweeps import read_sweep
from dlframe.trials import Agents, Trials, open_storage

optuna.logging.set_verbosity(optuna.logging.WARNING)


def sweep_file(folder, cap, method='random', name='idle'):
    "A sweep of three parameters whose trials do nothing"
    page = {
        'cells': [
            {
                'cell_type': 'code',
                'metadata': {'tags': ['parameters']},
                'source': 'lr: float = 1.\nbeta: float = 1.\nz_dim: int = 2',
            }
        ],
        'metadata': {},
        'nbformat': 4,
        'nbformat_minor': 5,
    }
    (folder / 'page.ipynb').write_text(json.dumps(page))
    parameters = {
        'lr': {'distribution': 'log_uniform_values', 'min': 1e-4, 'max': 1e-2},
        'beta': {'min': 0.0, 'max': 1.0},
        'z_dim': {'values': [2, 4, 8]},
    }
    given = {
        'program': 'page.ipynb',
        'method': method,
        'run_cap': cap,
        'parameters': parameters,
        'command': ['true', '${program}', '${args_json}'],
    }
    if method == 'bayes':
        given['metric'] = {'name': 'valid/loss', 'goal': 'minimize'}
    (folder / f'{name}.yaml').write_text(json.dumps(given))
    return folder / f'{name}.yaml'


def idle(agents, cap):
    "Seconds that a trial which does nothing takes an agent: at the beginning, and at the end"
    with tempfile.TemporaryDirectory() as home:
        file, folder = sweep_file(Path(home), cap), Path(home) / 'runs/idle'
        command = [
            sys.executable,
            '-c',
            'from dlframe.agent import main; main()',
            file.name,
            str(folder),
        ]
        for a in [
            subprocess.Popen(
                command,
                cwd=home,
                stdout=subprocess.DEVNULL,
                env={**os.environ, 'PYTHONPATH': str(Path.cwd())},
            )
            for _ in range(agents)
        ]:
            assert a.wait() == 0
        with Agents(folder) as me:
            done = Trials(read_sweep(file, file.parent), me, folder).all()
    assert len(done) == cap and all(t.state == TrialState.COMPLETE for t in done)
    begun = sorted(t.datetime_start for t in done)

    def pace(part):
        return agents * (part[-1] - part[0]).total_seconds() / (len(part) - 1)

    return pace(begun[:100]), pace(begun[-100:])


def bookkeeping(n, method, storage=None, repeats=30):
    """Median seconds of beginning and of ending a trial when there are n, seconds in which another
    agent reads the record, and how many bytes a trial takes in the journal
    """
    with tempfile.TemporaryDirectory() as home:
        file = sweep_file(Path(home), None, method, f'b{n}{method}{os.getpid()}')
        folder = Path(home) / f'runs/b{n}{method}{os.getpid()}'
        with Agents(folder) as me:
            trials = Trials(read_sweep(file, file.parent), me, folder, storage)
            chance = random.Random(0)
            space = {
                'lr': optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
                'beta': optuna.distributions.FloatDistribution(0.0, 1.0),
                'z_dim': optuna.distributions.CategoricalDistribution([2, 4, 8]),
            }
            trials.study.add_trials(
                [
                    optuna.create_trial(
                        value=chance.random(),
                        params={
                            'lr': 1e-3 * (1 + chance.random()),
                            'beta': chance.random(),
                            'z_dim': 4,
                        },
                        distributions=space,
                    )
                    for _ in range(n)
                ]
            )
            before, took = (folder / 'journal.log').stat().st_size if not storage else 0, []
            for _ in range(repeats):
                start = time.perf_counter()
                taken = trials.take()
                middle = time.perf_counter()
                trials.end(taken, TrialState.COMPLETE, chance.random())
                took.append((middle - start, time.perf_counter() - middle))
            size = (
                ((folder / 'journal.log').stat().st_size - before) / repeats if not storage else 0
            )
            start = time.perf_counter()
            optuna.load_study(
                study_name=folder.name, storage=open_storage(folder, storage)
            ).get_trials(deepcopy=False)
            opened = time.perf_counter() - start
    return *map(statistics.median, zip(*took)), opened, size


def simulate(agents, minutes, writes, service, servers=1, hours=2, seed=0):
    """How long a trial waits for the record, in the middle and at worst (seconds), and how busy it
    is: every agent writes `writes` times for each trial, each takes `service`, `servers` at a time
    """
    chance, free, waits, busy = random.Random(seed), [0.0] * servers, [], 0.0
    # all come within one trial's time
    events = [(chance.uniform(0, 60 * minutes), a, writes, 0.0) for a in range(agents)]
    heapq.heapify(events)
    while events and events[0][0] < 3600 * hours:
        now, agent, left, waited = heapq.heappop(events)
        start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + service)
        busy, waited = busy + service, waited + start - now + service
        if left > 1:
            heapq.heappush(events, (start + service, agent, left - 1, waited))
        else:
            waits.append(waited)
            heapq.heappush(
                events,
                (start + service + chance.expovariate(1 / (60 * minutes)), agent, writes, 0.0),
            )
    return statistics.median(waits), max(waits), busy / servers / (3600 * hours)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('--agents', type=int, default=4)
    args.add_argument('--storage', help='a database to compare with, as Optuna names it')
    args.add_argument('--counts', type=int, nargs='*', default=[100, 1000])
    args = args.parse_args()
    print(
        f'trials that do nothing, {args.agents} agents, {os.cpu_count()} cores: seconds of an '
        'agent per trial'
    )
    for cap in args.counts:
        first, last = idle(args.agents, cap)
        print(
            f'  {cap:5d} trials: {first:.3f} for the first hundred, {last:.3f} for the last',
            flush=True,
        )
    print(
        'the record, one agent: milliseconds to begin and to end a trial when there are n, '
        'seconds to read it all'
    )
    services = {}
    for name, url in [('journal', None), *([('database', args.storage)] if args.storage else [])]:
        for method in ('random',) if url else ('random', 'bayes'):
            for n in (100, 1000) if url else (100, 1000, 10_000):
                begin, end, opened, size = bookkeeping(n, method, url)
                if method == 'random' and n == 1000:
                    services[name] = (begin + end) / 8
                print(
                    f'  {name:8} {method:6} n {n:6d}: {1000 * begin:7.1f} {1000 * end:6.1f} '
                    f'{opened:6.2f}' + (f', {size:.0f} bytes of journal' if size else ''),
                    flush=True,
                )
    print(
        'a thousand agents on a simulated clock (8 writes a trial): seconds that a trial waits '
        'for the record (median, worst), and how busy it is'
    )
    journal = services['journal']
    cases = [
        (f'journal, here ({1000 * journal:.1f} ms a write)', journal, 1),
        ('journal, a good network file system (5 ms)', 0.005, 1),
        ('journal, a slow one (30 ms)', 0.03, 1),
    ]
    if 'database' in services:
        cases.append(
            (
                f'database, here ({1000 * services["database"]:.1f} ms a write, 8 at a time)',
                services['database'],
                8,
            )
        )
    for minutes in 1, 10, 60:
        for name, service, servers in cases:
            median, worst, busy = simulate(1000, minutes, 8, service, servers)
            print(
                f'  trials of {minutes:2d} min, {name}: {median:8.2f} {worst:8.2f} '
                f'{100 * busy:4.0f} %',
                flush=True,
            )


if __name__ == '__main__':
    main()
