"""Every notebook runs, as nbdev-test runs it; those of a layer one after the other in one process,
which loads torch and Lightning once
"""

import re
from itertools import groupby

import pytest
from tree import ROOT, run

NBS = ROOT / 'nbs'
# W&B keeps a service in a process, which that page wants to see start
alone = ('41_loggers.ipynb',)
notebooks = sorted(
    p.relative_to(NBS)
    for p in NBS.rglob('*.ipynb')
    if not any(part[0] in '._' for part in p.relative_to(NBS).parts)
)


def layer(notebook):
    return notebook.parent, notebook.name if notebook.name in alone else notebook.name[
        0
    ] if notebook.name[0].isdigit() else ''


layers = {
    '/'.join(filter(None, map(str, k))): list(of)
    for k, of in groupby(sorted(notebooks, key=layer), layer)
}


def test_notebooks_are_found():
    assert len(notebooks) > 40 and sorted(sum(layers.values(), [])) == notebooks


@pytest.mark.hangs_after(3600)  # all pages of a layer, one after the other
@pytest.mark.parametrize('name', layers)
def test_notebooks(name, tmp_path, monkeypatch):
    pages = layers[name]
    # the likelihoods page reads what it trained before
    if pages[0].parent.name:
        monkeypatch.setenv('RUNS_ROOT', str(tmp_path))
    r = run(
        'nbdev-test',
        NBS / pages[0].parent,
        '--file-re',
        f'^({"|".join(re.escape(p.name) for p in pages)})$',
        '--folder-re',
        '^$',
        '--n-workers',
        '1',
        '--do-print',
        '--verbose',
    )
    if r.returncode or 'Success.' not in r.stdout:
        pytest.fail(r.stdout, pytrace=False)
    for page in pages:
        assert f'- Completed {NBS / page}' in r.stdout, r.stdout
