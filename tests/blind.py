"""A plugin of pytest: the functions that the tests of hostile input are about refuse everything, or
take everything

`PYTHONPATH=tests pytest -p blind --blind refuse tests/test_hostile.py`: each test must fail, but
those of names and of this, as it must with `--blind accept`.
"""

import contextlib

import pytest

from dlframe.validation import InvalidValue, Refusal

SUBJECTS = [
    'build',
    'check_idx',
    'check_parameters',
    'find',
    'load',
    'main',
    'override',
    'read',
    'read_kernels',
    'read_sweep',
    'read_value',
    'rerun',
    'spec',
    'write',
    'Evaluate',
    'Kernels',
    'Run',
    'images',
]


def refuse(function):
    def refused(*args, **kwargs):
        raise InvalidValue('`everything` must be refused, got this')

    return refused


def accept(function):
    "What is refused gives what was given for the last thing that was taken"
    last = [None]

    def accepted(*args, **kwargs):
        with contextlib.suppress(Refusal, OSError, SystemExit):
            last[0] = function(*args, **kwargs)
        return last[0]

    return accepted


def pytest_addoption(parser):
    parser.addoption('--blind', choices=['refuse', 'accept'])


def blindfold(module, how, patch):
    "Patch the subjects in a module of tests"
    blind = {'refuse': refuse, 'accept': accept}[how]
    for name in SUBJECTS:
        subject = getattr(module, name, None)
        if name == 'Run' and subject:
            patch.setattr(subject, 'resume', staticmethod(blind(subject.resume)))
        elif subject is not None:
            patch.setattr(module, name, blind(subject))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    "Fixtures are made before, with what there is"
    with pytest.MonkeyPatch.context() as patch:
        blindfold(item.module, item.config.getoption('--blind'), patch)
        return (yield)
