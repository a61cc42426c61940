"""A plugin of pytest: the functions that the tests of hostile input are about refuse everything, or take everything

`PYTHONPATH=. pytest -p tests.blind --blind refuse tests/test_hostile.py`: each test but that of the names must fail, as it must with `--blind accept`.
"""
import pytest

from dlframe.checks import InvalidValue, Refusal

SUBJECTS = '''build check_idx check_parameters find load main override read read_kernels read_sweep read_value rerun spec write
Evaluate Kernels Run images'''.split()

def refuse(function):
    def refused(*args, **kwargs): raise InvalidValue('`everything` must be refused, got this')
    return refused

def accept(function):
    "What is refused gives what was given for the last thing that was taken"
    last = [None]
    def accepted(*args, **kwargs):
        try: last[0] = function(*args, **kwargs)
        except (Refusal, OSError, SystemExit): pass
        return last[0]
    return accepted

def pytest_addoption(parser): parser.addoption('--blind', choices=['refuse', 'accept'])

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    "Fixtures are made before, with what there is"
    blind = {'refuse': refuse, 'accept': accept}[item.config.getoption('--blind')]
    with pytest.MonkeyPatch.context() as patch:
        for name in SUBJECTS:
            subject = getattr(item.module, name, None)
            if isinstance(subject, type) and name == 'Run': patch.setattr(subject, 'resume', staticmethod(blind(subject.resume)))
            elif subject is not None: patch.setattr(item.module, name, blind(subject))
        return (yield)
