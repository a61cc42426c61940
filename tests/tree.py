"The working tree, and copies of it to try things on"

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def run(*cmd, cwd=ROOT, first=BIN):
    """Run a program, of `first` or of this environment, in `cwd`, from which Python imports too;
    its output is one text
    """
    path = os.pathsep.join([str(first), str(BIN), os.environ['PATH']])
    # the outer make's ARGS stay outside
    env = {
        **os.environ,
        'PATH': path,
        'PYTHONPATH': str(cwd),
        'PYTHONDONTWRITEBYTECODE': '1',
        'MAKEFLAGS': '',
        'MAKELEVEL': '0',
    }
    return subprocess.run(
        [str(c) for c in cmd],
        cwd=cwd,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def git(cwd, *args):
    "Lines of a git command's answer"
    command = ['git', '-c', 'safe.directory=*', *args, '-z']
    r = subprocess.run(command, cwd=cwd, text=True, capture_output=True)
    if r.returncode:
        why = r.stderr.strip()
        pytest.skip(f'not a git checkout, so which files belong to it is unknown: {why}')
    return sorted({f for f in r.stdout.split('\0') if f})


def copy_tree(to):
    """Copy what git would commit, tracked or not yet, to a new repository whose index holds all of
    it
    """
    for f in git(ROOT, 'ls-files', '--cached', '--others', '--exclude-standard'):
        if not os.path.lexists(ROOT / f):
            continue
        (to / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / f, to / f, follow_symlinks=False)
    for cmd in (['init', '-q'], ['add', '-A']):
        subprocess.run(['git', *cmd], cwd=to, check=True)
    return to


def changed(copy):
    "Files of a copy that differ from what was copied, new ones too"
    differ = git(copy, 'diff', '--name-only')
    new = git(copy, 'ls-files', '--others', '--exclude-standard')
    return sorted({*differ, *new})
