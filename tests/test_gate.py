"What is committed is what the notebooks give; each test works on a copy of the tree"
import json, re

import pytest
from tree import changed, copy_tree, run

@pytest.fixture
def copy(tmp_path): return copy_tree(tmp_path/'copy')

def must_run(*cmd, **kwargs):
    r = run(*cmd, **kwargs)
    if r.returncode or re.search(r'\b(error|warning|traceback)\b|Error:|Warning:', r.stdout, re.I):
        pytest.fail(f"{' '.join(cmd)} (exit status {r.returncode})\n{r.stdout}", pytrace=False)

def must_change_nothing(*cmd, cwd):
    must_run(*cmd, cwd=cwd)
    if files := changed(cwd): pytest.fail(f"{' '.join(cmd)} changes {', '.join(files)}: run `make prepare`", pytrace=False)

def tagged(copy):
    "How many cells of each notebook are tagged `parameters`"
    return {p.name: sum('parameters' in c['metadata'].get('tags', []) for c in json.loads(p.read_text('utf-8'))['cells'])
            for p in copy.glob('nbs/**/*.ipynb')}

def test_export_leaves_no_difference(copy): must_change_nothing('nbdev-export', cwd=copy)

def test_clean_leaves_no_difference(copy):
    before = tagged(copy)
    must_change_nothing('nbdev-clean', cwd=copy)
    assert tagged(copy) == before
    assert before['train.ipynb'] == 1

def test_readme_is_index(copy):
    must_change_nothing('python', 'scripts/readme.py', cwd=copy)
    readme = (copy/'README.md').read_text('utf-8')
    assert len(readme.splitlines()) <= 120
    relative = re.findall(r'(?:\]\(|(?:src|href)=")(?![a-z]+:|#)([^)#"\s]+)', readme)
    assert not [f for f in relative if not (copy/f).exists()]

def test_pages_process(copy, tmp_path):
    (tmp_path/'quarto').touch(mode=0o755)  # nbdev only looks whether it is there, and would install it with sudo
    must_run('nbdev-proc-nbs', '--n-workers', '2', cwd=copy, first=tmp_path)
    assert (copy/'_proc/_quarto.yml').read_text() == (copy/'_quarto.yml').read_text()
    assert (copy/'nbs/_quarto.yml').is_symlink()
    pages = {p.relative_to(copy/'nbs') for p in copy.glob('nbs/**/*.ipynb')}
    assert pages == {p.relative_to(copy/'_proc') for p in copy.glob('_proc/**/*.ipynb')}
