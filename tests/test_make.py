"`make` says in a line what is wrong, and leaves nothing half made"

import os
import shutil
import signal
import subprocess
import sys

import pytest
from tree import copy_tree, run


def program(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def copy(tmp_path):
    return copy_tree(tmp_path / 'copy')


def refuses(line, *args, cwd, **kwargs):
    r = run('make', *args, cwd=cwd, **kwargs)
    assert r.returncode and line in r.stdout, r.stdout
    assert not (cwd / '.venv/installed').exists()


def test_old_python(copy, tmp_path):
    pretend = 'import sys; sys.version_info = (3, 8, 18); exec(sys.argv[1])'
    old = program(tmp_path / 'old', f'exec "{sys.executable}" -c "{pretend}" "$2"')
    line = f'`{old}` is Python 3.8.18, and 3.10 or newer is needed'
    refuses(line, 'test', f'PYTHON={old}', cwd=copy)


def test_no_python(copy):
    refuses('`nowhere` does not run', 'train', 'PYTHON=nowhere', cwd=copy)


def test_no_venv_module(copy, tmp_path):
    bare = program(
        tmp_path / 'bare', 'case "$2" in venv) mkdir -p .venv/bin; exit 1;; *) echo 3.12.0;; esac'
    )
    refuses('apt install python3-venv', 'test', f'PYTHON={bare}', cwd=copy)
    assert not (copy / '.venv').exists()


def test_no_network(copy, tmp_path):
    program(tmp_path / 'uv', 'echo "no route to host"; exit 1')  # nothing is downloaded
    refuses('is there a network?', 'test', cwd=copy, first=tmp_path)


# Two at once

TOOLS = ['sh', 'make', 'touch', 'find', 'rm', 'mkdir', 'cp', 'date']

PYTHON = f"""case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
  *"-m pytest"*) echo tested;;
  *) exec {sys.executable} "$@";;
esac"""

INSTALLS = 'echo "$@" >> installed.log; echo "$$" > begun; read how < go; exit $how'


class Both:
    "Starts `make test` with a Python and an installer that wait to be told how to end"

    def __init__(self, copy, bin, locks):
        self.copy, self.bin = copy, bin
        bin.mkdir()
        for name in TOOLS + ['flock'] * locks:
            (bin / name).symlink_to(shutil.which(name))
        program(bin / 'python3', PYTHON)
        program(bin / 'uv', INSTALLS)
        for name in 'begun', 'go':
            os.mkfifo(copy / name)

    def make(self):
        env = {**os.environ, 'PATH': str(self.bin), 'MAKEFLAGS': '', 'MAKELEVEL': '0'}
        return subprocess.Popen(
            ['make', 'test'],
            cwd=self.copy,
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def begins(self):
        return int((self.copy / 'begun').read_text())

    def ends(self, status):
        (self.copy / 'go').write_text(f'{status}\n')

    def installed(self):
        return len((self.copy / 'installed.log').read_text().splitlines())


# macOS has none
@pytest.fixture(params=['no flock', *(['flock'] if shutil.which('flock') else [])])
def both(request, copy, tmp_path):
    return Both(copy, tmp_path / 'bin', request.param == 'flock')


WAITS = 'dlframe: another `make` installs into .venv: waiting for it\n'


def test_one_waits_for_the_other(both):
    first = both.make()
    both.begins()
    second = both.make()
    assert second.stdout.readline() == WAITS
    both.ends(0)
    assert (first.communicate()[0], first.returncode) == ('tested\n', 0)
    assert (second.communicate()[0], second.returncode) == ('tested\n', 0)
    assert both.installed() == 1


def test_the_other_installs_what_the_first_could_not(both):
    first = both.make()
    both.begins()
    second = both.make()
    assert second.stdout.readline() == WAITS
    both.ends(1)
    assert 'is there a network?' in first.communicate()[0] and first.returncode
    both.begins()
    both.ends(0)
    assert (second.communicate()[0], second.returncode) == ('tested\n', 0)
    assert both.installed() == 2


def test_no_lock_is_left_by_a_killed_make(both):
    first = both.make()
    both.begins()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    second = both.make()
    both.begins()
    both.ends(0)
    assert (second.communicate()[0], second.returncode) == ('tested\n', 0)


@pytest.fixture
def ready(copy):
    "A copy whose environment counts as installed"
    (copy / '.venv').mkdir()
    (copy / '.venv/installed').touch()
    return copy


def test_the_command(ready):
    (ready / '.venv/bin').mkdir()
    program(ready / '.venv/bin/python', 'echo "$@"')
    r = run('make', 'train', 'NAME=first', 'ARGS=-p z_dim 2', cwd=ready)
    assert (
        r.stdout.splitlines()[0] == '-m papermill --engine dlframe --stdout-file - --stderr-file - '
        'nbs/experiments/train.ipynb runs/first.ipynb -p beta 0.1 -p z_dim 2 -r name first'
    )


def test_the_name_is_not_in_args(ready):
    r = run('make', 'train', 'ARGS=-p beta 1 -p  name mine', cwd=ready)
    assert r.returncode and 'NAME=' in r.stdout
    assert not (ready / 'runs').exists()


def test_a_notebook_is_not_overwritten(ready):
    (ready / 'runs').mkdir()
    (ready / 'runs/first.ipynb').write_text('kept')
    r = run('make', 'train', 'NAME=first', cwd=ready)
    assert r.returncode and 'runs/first.ipynb exists' in r.stdout
    assert (ready / 'runs/first.ipynb').read_text() == 'kept'
