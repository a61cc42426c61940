"Every notebook runs, as nbdev-test runs it, in a process of its own"
import pytest
from tree import ROOT, run

NBS = ROOT/'nbs'
notebooks = sorted(str(p.relative_to(ROOT)) for p in NBS.rglob('*.ipynb')
                   if not any(part[0] in '._' for part in p.relative_to(NBS).parts))

def test_notebooks_are_found(): assert notebooks

@pytest.mark.parametrize('notebook', notebooks)
def test_notebook(notebook):
    r = run('nbdev-test', notebook, '--verbose')
    if r.returncode or 'Success.' not in r.stdout: pytest.fail(r.stdout, pytrace=False)
