"""One torch thread in each of the parallel processes, long files first, limits, failures as they
happen, and a last line that counts
"""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from limits import HANGS, Watchdog, hang_guard
from warm import Warm

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

# each stays in one process, so what takes longest begins first
long = 'wandb_sweeps', 'lost', 'train', 'notebooks', 'agent', 'wandb', 'machines'


def pytest_collection_modifyitems(items):
    place = {f'test_{name}': i for i, name in enumerate(long)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


class Failures:
    "Writes the name of each failed test, and why, as soon as it is known: the end may never come"

    def __init__(self, reporter):
        self.reporter = reporter

    def pytest_runtest_logreport(self, report):
        if not report.failed:
            return
        self.reporter.ensure_newline()
        self.reporter.write_line(f'FAILED {report.nodeid} ({report.when})', red=True)
        for line in reason(report):
            self.reporter.write_line(f'    {line}')


def reason(report, most=12, width=300):
    "The last lines of what a failed test said"
    crash = getattr(report.longrepr, 'reprcrash', None)
    said = f'{crash.path}:{crash.lineno}: {crash.message}' if crash else str(report.longrepr)
    lines = said.splitlines()
    if crash:
        lines = lines[:most]
    return [line[:width] for line in lines[-most:]]


kept, warm = pytest.StashKey(), pytest.StashKey()
BEGUN = 'TESTS_BEGUN'  # The folder where the parallel processes note what they have begun


@pytest.hookimpl(trylast=True)  # so that there is a terminal
def pytest_configure(config):
    config.addinivalue_line(
        'markers', 'hangs_after(seconds): of the wall clock; such a test is ended, and has failed'
    )
    begun = None if hasattr(config, 'workerinput') else tempfile.TemporaryDirectory()
    if begun:
        config.stash[warm] = Warm().__enter__()
        os.environ[BEGUN] = begun.name
    config.stash[kept] = Watchdog(), os.dup(2), begun  # nothing is captured yet
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    if reporter and not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Failures(reporter))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """A test that has ended its process has failed; xdist gives it to the next process too, which
    passes over it
    """
    if not hasattr(item.config, 'workerinput'):
        return
    note = Path(os.environ[BEGUN]) / hashlib.sha256(item.nodeid.encode()).hexdigest()
    if note.exists():
        return True
    note.touch()


def patience(item):
    "After how many seconds a test hangs; those of long files have twice the time"
    marker = item.get_closest_marker('hangs_after')
    if marker:
        return marker.args[0]
    return 2 * HANGS if item.path.stem in {f'test_{name}' for name in long} else HANGS


def guarded(item):
    return hang_guard(patience(item), item.config.stash[kept][1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with guarded(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with guarded(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    with guarded(item):
        return (yield)


def pytest_unconfigure(config):
    watchdog, stderr, begun = config.stash[kept]
    watchdog.close()
    os.close(stderr)
    if begun:
        begun.cleanup()
        config.stash[warm].__exit__()
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    if hasattr(config, 'workerinput') or not reporter:
        return
    n = {k: len(v) for k, v in reporter.stats.items()}
    line = f'{n.get("passed", 0)} passed, {n.get("failed", 0) + n.get("error", 0)} failed'
    if n.get('skipped'):
        line += f', {n["skipped"]} skipped'
    reporter.write_line(line)


def noted(stats):
    "What tests have recorded with `record_property`: the test, a name, a value"
    for reports in stats.values():
        for r in reports:
            if getattr(r, 'when', '') == 'teardown':
                for k, v in r.user_properties:
                    yield r.nodeid.split('::')[-1], k, v


def row(name, cells):
    "A line of a table"
    return name.ljust(60) + ''.join(str(c).rjust(19) for c in cells)


def pytest_terminal_summary(terminalreporter):
    """On which cluster there were jobs; how probable it is that two programs draw from one
    distribution; how generated cases ended
    """
    told = list(noted(terminalreporter.stats))
    for cluster in sorted({v for _, k, v in told if k == 'slurm'}):
        terminalreporter.write_line(f'Slurm was {cluster}')
    for storm in (v for _, k, v in told if k == 'storm'):
        terminalreporter.write_line(storm)
    found = sorted(v for _, k, v in told if k == 'p')
    if found:
        terminalreporter.write_line(row('drawn alike', ['p']))
    for name, p in found:
        terminalreporter.write_line(row(name, [f'{p:.3f}']))
    rows = [(name, v) for name, k, v in told if k == 'cases']
    if not rows:
        return
    kinds = sorted({k for _, ends in rows for k in ends})
    total = {k: sum(ends.get(k, 0) for _, ends in rows) for k in kinds}
    terminalreporter.write_line(row('generated cases', ['all', *kinds]))
    for name, ends in [*sorted(rows), ('all', total)]:
        numbers = [ends.get(k, 0) for k in kinds]
        terminalreporter.write_line(row(name, [sum(ends.values()), *numbers]))
