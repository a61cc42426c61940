"""A test that hangs is one failed test, failures are written as they happen, and no process
outlives the tests that started it
"""

import subprocess
import sys

import pytest
from filelock import FileLock
from limits import cpu_seconds
from tree import ROOT, run

CHILD = """import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print('has it', flush=True)
time.sleep(3600) # or until it is ended"""

HEAD = f"""import os, signal, subprocess, sys, time
import pytest

CHILD = {CHILD!r}

def child(lock, **how):
    "A process that holds a lock until it ends"
    command = [sys.executable, '-c', CHILD, lock]
    said = subprocess.Popen(command, stdout=subprocess.PIPE, **how).stdout
    assert said.readline() == b'has it\\n'
"""


@pytest.fixture
def suite(tmp_path):
    "`suite(tests, how)` runs tests as ours are run, and gives what was written"

    def go(tests, *how):
        (tmp_path / 'test_inner.py').write_text(HEAD + tests)
        (tmp_path / 'pytest.ini').write_text('[pytest]\n')
        words = ['-p', 'conftest', '-p', 'no:cacheprovider', '--dist', 'loadfile', *how]
        file = tmp_path / 'test_inner.py'
        return run('python', '-m', 'pytest', *words, file, cwd=ROOT / 'tests').stdout

    return go


def summary(said):
    return said.splitlines()[-1]


@pytest.mark.parametrize('how', ['-n0', '-n1'])
def test_hang(suite, how):
    said = suite(
        """
@pytest.mark.hangs_after(1)
def test_asleep(): time.sleep(3600)

@pytest.mark.hangs_after(1)
def test_swallowed():
    try: time.sleep(3600)
    except BaseException: pass

def test_after(): pass
""",
        how,
    )
    assert summary(said) == '1 passed, 2 failed', said
    for name in 'asleep', 'swallowed':
        assert f'FAILED test_inner.py::test_{name} (call)' in said.replace(f'{ROOT}/tests/', ''), (
            said
        )
    assert 'this test hangs: it has not ended in 1 s; it was at' in said
    assert 'INTERNALERROR' not in said


def test_process_that_ends(suite):
    "The others are run by another process"
    said = suite(
        """
def test_before(): pass
def test_killed(): os.kill(os.getpid(), signal.SIGKILL)
def test_after(): pass
""",
        '-n2',
    )
    assert summary(said) == '2 passed, 1 failed', said


def test_failures_are_written_at_once(suite):
    "Also where all is lost afterwards"
    said = suite(
        """
def test_wrong(): assert 1 == 2, 'no, they differ'
def test_kills_all(): os.kill(os.getppid(), signal.SIGKILL)
""",
        '-n1',
    )
    assert 'test_inner.py::test_wrong (call)' in said and 'no, they differ' in said, said
    assert 'short test summary' not in said


@pytest.mark.parametrize(
    'who', ['os.getpid()', 'os.getppid()'], ids=['a parallel process', 'the main process']
)
def test_children_end_with_their_parent(suite, who, tmp_path):
    locks = str(tmp_path / 'lock'), str(tmp_path / 'lock of a daemon')
    suite(
        f"""
def test_kills():
    child({locks[0]!r})
    child({locks[1]!r}, start_new_session=True)
    os.kill({who}, signal.SIGKILL)
""",
        '-n1',
    )
    # ten times the patience of the process that ends them
    for lock in locks:
        FileLock(lock, timeout=120).acquire()


def test_children_left_at_the_end(suite, tmp_path):
    lock = tmp_path / 'lock'
    said = suite(f'def test_leaves(): child({str(lock)!r})', '-n1')
    assert summary(said) == '1 passed, 0 failed'
    FileLock(lock, timeout=0).acquire()  # nothing is left when the tests have ended


def test_cpu_seconds():
    "Waiting is free; computing is not, and is interrupted"
    with cpu_seconds(0.5):
        subprocess.run([sys.executable, '-c', 'sum(range(3*10**7))'], check=True)
    with (
        pytest.raises(pytest.fail.Exception, match='more than 0.2 s of CPU time; it was at'),
        cpu_seconds(0.2),
    ):
        for _ in range(10**12):
            abs(1)
    with pytest.raises(pytest.fail.Exception), cpu_seconds(0.2):
        try:
            for _ in range(10**12):
                abs(1)
        except BaseException:
            pass  # of a library
