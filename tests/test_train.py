"The train page gives the same numbers however it is started, and leaves a run that can be read and trained again"
import base64, json, os, re, shutil
from pathlib import Path

import pytest
from experiment import PAGE, Jupyter, code, dlframe_run, environment, numbers, once, papermill, start, weights
from tree import ROOT

from dlframe.loading import load
from dlframe.vae import VAE

data_root = Path(os.environ.get('DATA_ROOT') or '~/.cache/dlframe/data').expanduser()
few = {'beta': 0.1, 'train_for': '30 steps'}

@pytest.fixture(scope='session')
def home(tmp_path_factory): return once(tmp_path_factory, 'home')

@pytest.fixture(scope='session')
def project(tmp_path_factory):
    "A copy of what the page needs, in which nothing says where runs go"
    def make(to):
        for folder in 'dlframe', 'nbs/experiments': shutil.copytree(ROOT/folder, to/folder, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        for file in 'settings.ini', 'pyproject.toml': shutil.copy(ROOT/file, to)
    return once(tmp_path_factory, 'project', make)

def good(r):
    assert r.returncode == 0, r.stdout + r.stderr
    return r

@pytest.fixture(scope='session')
def root(tmp_path_factory, project, home):
    "Started from the project's root"
    once(tmp_path_factory, 'root', lambda to: good(papermill(PAGE, to/'out.ipynb', environment(home, project), project, name='root', **few)))
    return project/'runs/root'

@pytest.fixture(scope='session')
def folder(tmp_path_factory, project, home):
    "Started from the page's own folder"
    once(tmp_path_factory, 'folder', lambda to: good(papermill('train.ipynb', to/'out.ipynb', environment(home, project), project/'nbs/experiments', name='folder', **few)))
    return project/'runs/folder'

@pytest.fixture(scope='session')
def said_in_jupyter(tmp_path_factory, project, home):
    "What the page says in Jupyter, with the parameters changed by hand"
    def make(to):
        with Jupyter(project/'nbs/experiments', environment(home, project), to/'kernel.json') as kernel:
            error, said = kernel.run(code(project/PAGE), name='jupyter', **few)
        assert not error
        (to/'said').write_bytes(said.encode())
    return (once(tmp_path_factory, 'jupyter', make)/'said').read_bytes().decode()

@pytest.fixture(scope='session')
def jupyter(said_in_jupyter, project): return project/'runs/jupyter'

runs = pytest.mark.parametrize('how', ['root', 'folder', 'jupyter'])

@runs
def test_the_run_is_in_the_projects_runs(how, request): assert (request.getfixturevalue(how)/'manifest.json').exists()

@runs
def test_metrics_are_the_same(how, root, request):
    assert {r['name'] for r in numbers(root)} >= {'train/loss', 'valid/loss', 'valid/distortion', 'valid/rate', 'valid/elbo'}
    assert numbers(request.getfixturevalue(how)) == numbers(root)

@runs
def test_weights_are_the_same(how, root, request): assert weights(request.getfixturevalue(how)) == weights(root)

def test_only_runs_are_written(root, folder, jupyter, project):
    assert {p.name for p in (project/'runs').iterdir()} <= {'root', 'folder', 'jupyter', 'again', 'other'}
    assert {p.name for p in project.iterdir()} == {'dlframe', 'nbs', 'pyproject.toml', 'runs', 'settings.ini'}
    assert {p.name for p in (project/'nbs/experiments').iterdir()} <= {p.name for p in (ROOT/'nbs/experiments').iterdir()} | {'.ipynb_checkpoints'}

def test_in_jupyter_the_bar_moves_in_place(said_in_jupyter):
    bar, = [line for line in said_in_jupyter.split('\n') if '%|' in line]
    assert bar.count('\r') > 2

def test_in_jupyter_the_bar_ends_with_the_last_step(said_in_jupyter):
    assert re.search(r'100%[^\r\n]*step 30\b', said_in_jupyter)

def test_run_folder(root):
    files = {str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()}
    pictures = {f for f in files if f.startswith('media/')}
    assert files - pictures == {'manifest.json', 'metrics.csv', 'checkpoints/last.ckpt', 'checkpoints/model.safetensors'}
    assert pictures >= {f'media/{name}-{step:06d}.png' for name in ('valid/reconstructions', 'samples') for step in (0, 30)}

def test_manifest_says_what_was_run(root):
    manifest = json.loads((root/'manifest.json').read_text('utf-8'))
    assert {'model', 'data', 'optimization', 'run', 'parameters', 'made'} <= manifest.keys()
    assert manifest['parameters']['beta'] == manifest['model']['beta'] == 0.1
    assert manifest['parameters'].keys() == declared().keys()

def test_load(root):
    model, manifest, metrics, *_ = load(root)
    assert isinstance(model, VAE) and model.beta == 0.1 and not model.training
    assert manifest['run']['name'] == 'root'
    losses = metrics['valid/loss'].dropna()
    assert list(losses.index) == [0, 30] and losses[30] < losses[0]

def test_manifest_trains_again_to_the_same_weights(root, project, home):
    r = good(dlframe_run('runs/root/manifest.json', 'run.name=again', env=environment(home, project), cwd=project))
    again = project/'runs/again'
    assert r.stdout.splitlines()[-1] == f'run folder: {again}'
    assert weights(again) == weights(root) and numbers(again) == numbers(root)

def test_manifest_trains_again_with_a_change(root, project, home):
    good(dlframe_run('runs/root/manifest.json', 'model.beta=0.2', 'run.name=other', env=environment(home, project), cwd=project))
    assert load(project/'runs/other').model.beta == 0.2
    assert weights(project/'runs/other') != weights(root)

def declared():
    "Each parameter's type, default and comment"
    lines = code()[0].splitlines()
    found = {m[1]: m.groups()[1:] for line in lines if (m := re.fullmatch(r'(\w+): (.+?) = (.+?) +# (.+)', line))}
    assert len(found) == len(lines) > 20, 'every line declares a parameter, with a comment'
    return found

def test_help_lists_every_parameter(home):
    r = good(start('papermill', '--help-notebook', PAGE, env=environment(home)))
    text = ' '.join(r.stdout.split())
    assert [n for n, (kind, default, comment) in declared().items() if f'{n}: {kind} (default {default}) {comment}' not in text] == []

@pytest.fixture(scope='session')
def long(tmp_path_factory, home):
    "The executed page of 5,000 steps"
    def make(to):
        good(papermill(PAGE, to/'long.ipynb', environment(home, RUNS_ROOT=to/'runs'), name='long', train_for='5000 steps'))
        assert load(to/'runs/long').metrics.index[-1] == 5000
    return once(tmp_path_factory, 'long', make)/'long.ipynb'

def outputs(page): return [o for c in json.loads(page.read_text('utf-8'))['cells'] for o in c.get('outputs', [])]
def shown(page, kind): return [o['data'][kind] for o in outputs(page) if kind in o.get('data', {})]

def test_notebook_is_small(long): assert long.stat().st_size < 200_000

def test_notebook_shows_pictures_and_a_table(long):
    pictures = shown(long, 'image/png')
    assert len(pictures) >= 5 and all(base64.b64decode(p).startswith(b'\x89PNG') for p in pictures)
    assert any('<table' in ''.join(t) and 'log-likelihood' in ''.join(t) for t in shown(long, 'text/html'))

def test_notebook_has_no_widgets(long): assert 'widget' not in long.read_text('utf-8')

def test_progress_is_quiet(long):
    lines = [line for o in outputs(long) for line in ''.join(o.get('text', '')).splitlines()]
    assert 1 <= sum(bool(re.match(r' *\d+% ', line)) for line in lines) <= 11
    assert not any('\r' in ''.join(o.get('text', '')) for o in outputs(long))

@pytest.fixture(scope='module')
def kernel(tmp_path_factory, home):
    to = tmp_path_factory.mktemp('mnist')
    with Jupyter((ROOT/PAGE).parent, environment(home, RUNS_ROOT=to/'runs', DATA_ROOT=data_root), to/'kernel.json') as kernel: yield kernel

@pytest.mark.skipif(not (data_root/'MNIST/raw').exists(), reason=f'MNIST is not in {data_root}: DATA_ROOT must name the folder that holds it')
@pytest.mark.parametrize('values', [
    dict(likelihood='bernoulli', binarize=True, prior='mixture', encoder='conv', encoder_widths=[8, 16], decoder='deconv', decoder_widths=[16, 8]),
    dict(likelihood='continuous_bernoulli', encoder='conv', encoder_widths=[8, 16]),
    dict(likelihood='normal', posterior='laplace'), dict(likelihood='normal', scale=0.1, prior='mixture'),
    dict(likelihood='laplace', decoder='deconv', decoder_widths=[16, 8]), dict(likelihood='beta', n_samples=2)], ids=lambda v: ' '.join(map(str, v.values())))
def test_mnist(values, kernel):
    "The page's last cell asserts that the model learned"
    cells = [c for c in code() if 'LogLikelihood(' not in c]
    error, _ = kernel.run(cells, dataset='MNIST', train_for='60 steps', **values)
    assert not error
