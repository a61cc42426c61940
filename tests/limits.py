"""Limits of the tests: CPU time for a call, a generous clock for a test that hangs, and processes
that end with the tests that started them
"""

import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from contextlib import contextmanager

import pytest

# Seconds of the wall clock: more than ten times what a test of a short file needs
HANGS = 900.0
# Seconds to wait for what must come: it only matters when it does not, and then ends the wait
# before the test is taken to hang
PATIENCE = 600.0
# Seconds: a failure that was swallowed is raised again; then the process is ended from outside
AGAIN = 60.0


def where(frame, most=12):
    "The innermost calls of a stack, as text, without those of pytest"
    calls = traceback.format_stack(frame)
    own = [c for c in calls if not re.search(r'/(_pytest|pluggy|xdist|execnet)/', c)]
    return ''.join(own[-most:])


@contextmanager
def alarm(seconds, timer, number, said):
    """Fail the test in that many seconds of a timer, wherever it then is; what swallows the failure
    gets it again
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    rung = []

    def ring(_, frame):
        rung.append(f'{said}; it was at\n{where(frame)}')
        pytest.fail(rung[0], pytrace=False)

    before = signal.signal(number, ring)
    signal.setitimer(timer, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)
    if rung:
        pytest.fail(rung[0], pytrace=False)


@contextmanager
def cpu_seconds(most):
    "A limit that does not depend on what else the machine does: this process may compute that long"
    began = time.process_time()
    with alarm(most, signal.ITIMER_PROF, signal.SIGPROF, f'more than {most:g} s of CPU time'):
        yield
    spent = time.process_time() - began
    assert spent <= most, f'{spent:.1f} s of CPU time, and {most:g} are allowed'


@contextmanager
def hang_guard(seconds, stderr):
    """A test that hangs fails; if that does not end it, its process ends with a trace on `stderr`,
    and with xdist one test has failed
    """
    faulthandler.dump_traceback_later(seconds + 2 * AGAIN, exit=True, file=stderr)
    said = f'this test hangs: it has not ended in {seconds:g} s'
    try:
        with alarm(seconds, signal.ITIMER_REAL, signal.SIGALRM, said):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


# Processes that outlive their parent

WATCHDOG = """
import os, signal, subprocess, sys, time
from pathlib import Path

mark, me = sys.argv[1].encode(), os.getpid()
signal.signal(signal.SIGINT, signal.SIG_IGN) # Ctrl-C is for the tests

def processes():
    "Ids of the processes that have the mark in their environment"
    if Path('/proc/self/environ').exists():
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                if mark in (folder/'environ').read_bytes().split(b'\\0'): yield int(folder.name)
            except OSError: pass # it has ended, or is another user's
    else:
        listed = subprocess.run(['ps', '-xwwE', '-o', 'pid=,command='], capture_output=True).stdout
        for line in listed.splitlines():
            if mark in line.split()[1:]: yield int(line.split()[0])

def ends(pid, number):
    try: os.kill(pid, number)
    except OSError: pass

sys.stdin.buffer.read() # until the process at the other end has ended, in whatever way
for number, patience in (signal.SIGTERM, 10), (signal.SIGKILL, 30):
    end, told = time.monotonic() + patience, set()
    while (left := set(processes()) - {me}) and time.monotonic() < end:
        for pid in left - told: ends(pid, number)
        told |= left
        time.sleep(.05)
"""

# Children inherit it, and theirs; each process of the tests has its own value
VARIABLE = 'TESTS_PROCESS'


class Watchdog:
    """Ends all that this process has started, directly or not, once this process has ended, even by
    SIGKILL
    """

    def __init__(self):
        self.before, self.closed = os.environ.pop(VARIABLE, None), False
        value = uuid.uuid4().hex
        command = [sys.executable, '-S', '-E', '-c', WATCHDOG, f'{VARIABLE}={value}']
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        os.environ[VARIABLE] = value
        # else a forked child would hold the pipe open
        os.register_at_fork(after_in_child=self.let_go)

    def let_go(self):
        if not self.closed:
            os.close(self.process.stdin.fileno())
        self.closed = True

    def close(self):
        "Return when all have ended"
        if self.closed:
            return
        self.closed = True
        self.process.stdin.close()
        self.process.wait()
        if self.before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = self.before
