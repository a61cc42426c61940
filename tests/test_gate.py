"What is committed is what the notebooks give; each test works on a copy of the tree"

import ast
import json
import platform
import re
import tempfile
from pathlib import Path

import pytest
from tree import ROOT, changed, copy_tree, run


@pytest.fixture
def copy(tmp_path):
    return copy_tree(tmp_path / 'copy')


def must_run(*cmd, **kwargs):
    r = run(*cmd, **kwargs)
    if r.returncode or re.search(r'\b(error|warning|traceback)\b|Error:|Warning:', r.stdout, re.I):
        pytest.fail(f'{" ".join(cmd)} (exit status {r.returncode})\n{r.stdout}', pytrace=False)


def must_change_nothing(*cmd, cwd):
    must_run(*cmd, cwd=cwd)
    if files := changed(cwd):
        said = f'{" ".join(cmd)} changes {", ".join(files)}: run `make prepare`'
        pytest.fail(said, pytrace=False)


def tagged(copy):
    "How many cells of each notebook are tagged `parameters`"
    found = {}
    for p in copy.glob('nbs/**/*.ipynb'):
        cells = json.loads(p.read_text('utf-8'))['cells']
        found[p.name] = sum('parameters' in c['metadata'].get('tags', []) for c in cells)
    return found


SOURCES = ['nbs', 'tests', 'benchmarks', 'scripts', 'setup.py']


def test_export_leaves_no_difference(copy):
    must_change_nothing('nbdev-export', cwd=copy)


def test_format_leaves_no_difference(copy):
    must_change_nothing('ruff', 'format', *SOURCES, cwd=copy)


def test_lint():
    r = run('ruff', 'check', '--no-cache', 'dlframe', *SOURCES, cwd=ROOT)
    assert not r.returncode, r.stdout


def test_types(tmp_path):
    r = run('mypy', '--cache-dir', tmp_path, 'dlframe', cwd=ROOT)
    assert not r.returncode, r.stdout


def test_types_find_a_fault(tmp_path):
    (tmp_path / 'fault.py').write_text('def double(x: int) -> int:\n    return str(x)\n')
    r = run('mypy', '--config-file', ROOT / 'pyproject.toml', 'fault.py', cwd=tmp_path)
    assert r.returncode == 1 and 'return-value' in r.stdout


def test_lint_finds_a_fault(tmp_path):
    "The rules are those of the project, for a file of its own"
    (tmp_path / 'fault.py').write_text('import os\nvalue = None\nprint(value == None)\n')
    r = run('ruff', 'check', '--config', ROOT / 'pyproject.toml', tmp_path, cwd=ROOT)
    assert r.returncode == 1 and 'F401' in r.stdout and 'E711' in r.stdout


def test_clean_leaves_no_difference(copy):
    before = tagged(copy)
    must_change_nothing('nbdev-clean', cwd=copy)
    assert tagged(copy) == before
    assert before['train.ipynb'] == 1


def test_readme_is_index(copy):
    must_change_nothing('python', 'scripts/readme.py', cwd=copy)
    readme = (copy / 'README.md').read_text('utf-8')
    assert len(readme.splitlines()) <= 120
    relative = re.findall(r'(?:\]\(|(?:src|href)=")(?![a-z]+:|#)([^)#"\s]+)', readme)
    assert not [f for f in relative if not (copy / f).exists()]


def test_pages_process(copy, tmp_path):
    # nbdev only looks whether it is there, and would install it with sudo
    (tmp_path / 'quarto').touch(mode=0o755)
    must_run('nbdev-proc-nbs', '--n-workers', '2', cwd=copy, first=tmp_path)
    assert (copy / '_proc/_quarto.yml').read_text() == (copy / '_quarto.yml').read_text()
    assert (copy / 'nbs/_quarto.yml').is_symlink()
    pages = {p.relative_to(copy / 'nbs') for p in copy.glob('nbs/**/*.ipynb')}
    assert pages == {p.relative_to(copy / '_proc') for p in copy.glob('_proc/**/*.ipynb')}


# What is stored in the pages names no machine

PLACES = {
    'a folder of a machine': (
        r'(?<![\w./])/(?:tmp|home|root|work|Users|private|var|opt|mnt|usr/local|usr/lib)/'
        r'[^\s"\'`<>,;)]*'
    ),
    'a folder of Windows': r'(?<!\w)[A-Z]:\\{1,2}[A-Z]\w[^\s"\'`<>,;)]*',
    'installed packages': r'\b(?:site|dist)-packages\b',
    'a temporary name': r'(?<!\w)tmp[a-z0-9_]{8}(?![a-z0-9_])',
    'the address of an object': r'\b0x[0-9a-f]{8,}\b',
    'a folder of W&B': r'\brun-\d{8}_\d{6}-\w+',
}


def here():
    "Names of the machine on which this runs"
    places = {str(ROOT), str(Path.home()), str(Path(tempfile.gettempdir()).resolve())} - {'/'}
    host = platform.node()
    if len(host) > 6 and re.search(r'[\d.-]', host):
        places.add(host)
    return '|'.join(rf'(?<!\w){re.escape(p)}(?!\w)' for p in places)


def texts(nb):
    "What a page holds besides pictures: cell, where in it, text"

    def joined(x):
        return ''.join(x) if isinstance(x, list) else x if isinstance(x, str) else json.dumps(x)

    yield 'notebook', 'metadata', joined(nb['metadata'])
    for number, cell in enumerate(nb['cells']):
        place = f'cell {number} ({cell.get("id")})'
        yield place, 'source', joined(cell['source'])
        yield place, 'metadata', joined(cell['metadata'])
        for output in cell.get('outputs', []):
            for kind, value in output.get('data', {}).items():
                if not kind.startswith('image/') or kind == 'image/svg+xml':
                    yield place, kind, joined(value)
            for kind in 'text', 'traceback', 'evalue':
                if kind in output:
                    yield place, kind, joined(output[kind])


def named_places(nb, depth):
    """Lines about the places of a machine that a page names which lies `depth` folders below the
    root
    """
    outside = rf'(?<![\w.])(?:\.\./){{{depth + 1},}}[^\s"\'`<>,;)]*'
    rules = {**PLACES, 'this machine': here(), 'a folder outside of the repository': outside}
    return [
        f'{place}, {kind}: {what}: {m[0]!r}'
        for place, kind, text in texts(nb)
        for what, rule in rules.items()
        for m in re.finditer(rule, text)
    ]


PAGES = sorted(
    p
    for p in (ROOT / 'nbs').rglob('*.ipynb')
    if not any(part[0] in '._' for part in p.relative_to(ROOT).parts)
)


def test_pages_name_no_machine():
    found = []
    for page in PAGES:
        name, nb = page.relative_to(ROOT), json.loads(page.read_text('utf-8'))
        found += [f'{name}, {line}' for line in named_places(nb, len(name.parts) - 1)]
    assert len(PAGES) > 40
    if found:
        asked = 'print paths relative to the working directory, and execute again:'
        pytest.fail('\n'.join([asked, *found]), pytrace=False)


@pytest.mark.parametrize(
    'text, refused',
    [
        ('run folder: /tmp/tmprz5jsbj2/shell', True),
        ("PosixPath('/home/ada/runs/first')", True),
        ('"/Users/ada/dlframe/runs"', True),
        ('/work/project/runs/first', True),
        ('C:\\Users\\ada', True),
        ('File "/usr/lib/python3.12/site-packages/torch/nn/modules/module.py", line 3', True),
        ('../../../tmp/mine/runs/first', True),
        ('../../runs/first', False),  # of a page in nbs/experiments
        ('runs/first', False),
        ('tmpo3x_9a1b/runs', True),
        ('<object at 0x7f40375ff6c0>', True),
        ('wandb/run-20261128_101500-x7k2abcd', True),
        (f'{ROOT}/runs', True),
        ('https://docs.org/tmp/page', False),
        ('DATA_ROOT=/data', False),
        ('.venv/bin/python', False),
        ('template, tmp, attempts', False),
        ('1/2/3', False),
    ],
)
@pytest.mark.parametrize('output', [False, True], ids=['source', 'output'])
def test_places_are_found(text, refused, output):
    cell = {
        'id': 'a',
        'source': '' if output else [text],
        'metadata': {},
        'outputs': [{'data': {'text/html': [text], 'image/png': '/tmp/x'}}] if output else [],
    }
    assert bool(named_places({'metadata': {}, 'cells': [cell]}, 2)) == refused


def test_no_bare_assert_in_the_library():
    "`python -O` leaves them out, and their error says nothing"
    modules = sorted((ROOT / 'dlframe').rglob('*.py'))
    found = [
        f'{m.name}:{n.lineno}'
        for m in modules
        for n in ast.walk(ast.parse(m.read_text('utf-8')))
        if isinstance(n, ast.Assert)
    ]
    assert len(modules) > 30 and found == []
