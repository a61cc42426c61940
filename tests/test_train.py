"""The pages of experiments: the same numbers however they are started; every model and option by
parameter alone; runs that can be read, looked at and trained again
"""

import base64
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from experiment import (
    PAGE,
    Jupyter,
    code,
    dlframe_run,
    environment,
    numbers,
    once,
    papermill,
    start,
    weights,
)
from tree import ROOT

from dlframe.faces import synthetic_celeba
from dlframe.loading import load
from dlframe.loggers import read_metrics
from dlframe.specs import read
from dlframe.vae import VAE

data_root = Path(os.environ.get('DATA_ROOT') or '~/.cache/dlframe/data').expanduser()
few = {'beta': 0.1, 'train_for': '30 steps'}


@pytest.fixture(scope='session')
def home(tmp_path_factory):
    return once(tmp_path_factory, 'home')


@pytest.fixture(scope='session')
def project(tmp_path_factory):
    "A copy of what the page needs, in which nothing says where runs go"

    def make(to):
        for folder in 'dlframe', 'nbs/experiments':
            shutil.copytree(
                ROOT / folder,
                to / folder,
                ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'),
            )
        for file in 'settings.ini', 'pyproject.toml':
            shutil.copy(ROOT / file, to)

    return once(tmp_path_factory, 'project', make)


def good(r):
    assert r.returncode == 0, r.stdout + r.stderr
    return r


@pytest.fixture(scope='session')
def root(tmp_path_factory, project, home):
    "Started from the project's root"
    once(
        tmp_path_factory,
        'root',
        lambda to: good(
            papermill(
                PAGE, to / 'out.ipynb', environment(home, project), project, name='root', **few
            )
        ),
    )
    return project / 'runs/root'


@pytest.fixture(scope='session')
def folder(tmp_path_factory, project, home):
    "Started from the page's own folder"
    once(
        tmp_path_factory,
        'folder',
        lambda to: good(
            papermill(
                'train.ipynb',
                to / 'out.ipynb',
                environment(home, project),
                project / 'nbs/experiments',
                name='folder',
                **few,
            )
        ),
    )
    return project / 'runs/folder'


@pytest.fixture(scope='session')
def said_in_jupyter(tmp_path_factory, project, home):
    "What the page says in Jupyter, with the parameters changed by hand"

    def make(to):
        with Jupyter(
            project / 'nbs/experiments', environment(home, project), to / 'kernel.json'
        ) as kernel:
            error, said = kernel.run(code(project / PAGE), name='jupyter', **few)
        assert not error
        (to / 'said').write_bytes(said.encode())

    return (once(tmp_path_factory, 'jupyter', make) / 'said').read_bytes().decode()


@pytest.fixture(scope='session')
def jupyter(said_in_jupyter, project):
    return project / 'runs/jupyter'


runs = pytest.mark.parametrize('how', ['root', 'folder', 'jupyter'])


@runs
def test_the_run_is_in_the_projects_runs(how, request):
    assert (request.getfixturevalue(how) / 'manifest.json').exists()


@runs
def test_metrics_are_the_same(how, root, request):
    assert {r['name'] for r in numbers(root)} >= {
        'train/loss',
        'valid/loss',
        'valid/distortion',
        'valid/rate',
        'valid/elbo',
    }
    assert numbers(request.getfixturevalue(how)) == numbers(root)


@runs
def test_weights_are_the_same(how, root, request):
    assert weights(request.getfixturevalue(how)) == weights(root)


def test_only_runs_are_written(root, folder, jupyter, project):
    assert {p.name for p in (project / 'runs').iterdir()} <= {
        'root',
        'folder',
        'jupyter',
        'again',
        'other',
    }
    assert {p.name for p in project.iterdir()} == {
        'dlframe',
        'nbs',
        'pyproject.toml',
        'runs',
        'settings.ini',
    }
    assert {p.name for p in (project / 'nbs/experiments').iterdir()} <= {
        p.name for p in (ROOT / 'nbs/experiments').iterdir()
    } | {'.ipynb_checkpoints'}


def test_in_jupyter_the_bar_moves_in_place(said_in_jupyter):
    (bar,) = [line for line in said_in_jupyter.split('\n') if '%|' in line]
    assert bar.count('\r') > 2


def test_in_jupyter_the_bar_ends_with_the_last_step(said_in_jupyter):
    assert re.search(r'100%[^\r\n]*step 30\b', said_in_jupyter)


def test_run_folder(root):
    files = {str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()}
    pictures = {f for f in files if f.startswith('media/')}
    assert files - pictures == {
        '.lock',
        'SHA256SUMS',
        'manifest.json',
        'metrics.csv',
        'status.json',
        'checkpoints/last.ckpt',
        'checkpoints/previous.ckpt',
        'checkpoints/model.safetensors',
    }
    assert pictures >= {
        f'media/{name}-{step:06d}.png'
        for name in ('valid/reconstructions', 'samples')
        for step in (0, 30)
    }


def test_manifest_says_what_was_run(root):
    manifest = json.loads((root / 'manifest.json').read_text('utf-8'))
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
    r = good(
        dlframe_run(
            'runs/root/manifest.json', 'run.name=again', env=environment(home, project), cwd=project
        )
    )
    again = project / 'runs/again'
    assert r.stdout.splitlines()[-1] == f'run folder: {again}'
    assert weights(again) == weights(root) and numbers(again) == numbers(root)


def test_manifest_trains_again_with_a_change(root, project, home):
    good(
        dlframe_run(
            'runs/root/manifest.json',
            'model.beta=0.2',
            'run.name=other',
            env=environment(home, project),
            cwd=project,
        )
    )
    assert load(project / 'runs/other').model.beta == 0.2
    assert weights(project / 'runs/other') != weights(root)


def declared():
    "Each parameter's type, default and comment; groups have a title"
    lines = [line for line in code()[0].splitlines() if line and line[0] != '#']
    found = {
        m[1]: m.groups()[1:]
        for line in lines
        if (m := re.fullmatch(r'(\w+): (.+?) = (.+?) +# (.+)', line))
    }
    assert len(found) == len(lines) > 20, 'every line declares a parameter, with a comment'
    return found


def test_help_lists_every_parameter(home):
    r = good(start('papermill', '--help-notebook', PAGE, env=environment(home)))
    text = ' '.join(r.stdout.split())
    lines = [
        f'{n}: {kind} (default {default}) {comment}'
        for n, (kind, default, comment) in declared().items()
    ]
    assert [line for line in lines if line not in text] == []
    places = [text.index(line) for line in lines]
    assert places == sorted(places)  # in groups


def test_parameters_stand_in_groups():
    titles = re.findall(r'^# (.+)$', code()[0], re.M)
    assert titles == ['Data', 'Networks', 'Objective', 'Optimization', 'Evaluation', 'Run']


@pytest.fixture(scope='session')
def long(tmp_path_factory, home):
    "The executed page of 5,000 steps"

    def make(to):
        good(
            papermill(
                PAGE,
                to / 'long.ipynb',
                environment(home, RUNS_ROOT=to / 'runs'),
                name='long',
                train_for='5000 steps',
            )
        )
        assert load(to / 'runs/long').metrics.index[-1] == 5000

    return once(tmp_path_factory, 'long', make) / 'long.ipynb'


def outputs(page):
    return [o for c in json.loads(page.read_text('utf-8'))['cells'] for o in c.get('outputs', [])]


def shown(page, kind):
    return [o['data'][kind] for o in outputs(page) if kind in o.get('data', {})]


def test_notebook_is_small(long):
    assert long.stat().st_size < 200_000


def test_notebook_shows_pictures_and_a_table(long):
    pictures = shown(long, 'image/png')
    assert len(pictures) >= 5 and all(base64.b64decode(p).startswith(b'\x89PNG') for p in pictures)
    assert any(
        '<table' in ''.join(t) and 'log_likelihood' in ''.join(t) for t in shown(long, 'text/html')
    )


def test_notebook_has_no_widgets(long):
    assert 'widget' not in long.read_text('utf-8')


def test_progress_is_quiet(long):
    lines = [line for o in outputs(long) for line in ''.join(o.get('text', '')).splitlines()]
    assert 1 <= sum(bool(re.match(r' *\d+% ', line)) for line in lines) <= 11
    assert not any('\r' in ''.join(o.get('text', '')) for o in outputs(long))


@pytest.fixture(scope='module')
def kernel(tmp_path_factory, home):
    to = tmp_path_factory.mktemp('mnist')
    with Jupyter(
        (ROOT / PAGE).parent,
        environment(home, RUNS_ROOT=to / 'runs', DATA_ROOT=data_root),
        to / 'kernel.json',
    ) as kernel:
        yield kernel


@pytest.mark.skipif(
    not (data_root / 'MNIST/raw').exists(),
    reason=f'MNIST is not in {data_root}: DATA_ROOT must name the folder that holds it',
)
@pytest.mark.parametrize(
    'values',
    [
        dict(
            likelihood='bernoulli',
            binarize='dynamic',
            prior='mixture',
            encoder='conv',
            encoder_widths=[8, 16],
            decoder='deconv',
            decoder_widths=[16, 8],
        ),
        dict(likelihood='continuous_bernoulli', encoder='conv', encoder_widths=[8, 16]),
        dict(likelihood='normal', posterior='laplace'),
        dict(likelihood='normal', scale=0.1, prior='mixture'),
        dict(likelihood='laplace', decoder='deconv', decoder_widths=[16, 8]),
        # a density that takes ten times as long, for 64 pixels instead of 784
        dict(likelihood='beta', n_samples=2, dataset='digits'),
    ],
    ids=lambda v: ' '.join(map(str, v.values())),
)
def test_mnist(values, kernel):
    "The page's last cell asserts that the model learned"
    cells = [*before('df.load(run.folder'), code()[-1]]  # without the pictures and final numbers
    error, _ = kernel.run(cells, **{'dataset': 'MNIST', 'train_for': '60 steps', **values})
    assert not error


# Models and options by parameter alone, in a kernel that several tests share

GAN, EVALUATE, LIKELIHOODS = (
    PAGE.replace('train', name) for name in ('gan', 'evaluate', 'likelihoods')
)


@pytest.fixture(scope='session')
def faces(tmp_path_factory):
    "A data root with 300 drawn faces"
    return once(tmp_path_factory, 'faces', lambda to: synthetic_celeba(to, 300))


def before(mark, page=PAGE):
    "The cells of a page up to the first that holds `mark`"
    cells = code(ROOT / page)
    return cells[: 1 + next(i for i, c in enumerate(cells) if mark in c)]


class Shared:
    "A kernel in which one page after another is run with other parameters"

    def __init__(self, kernel, runs):
        self.kernel, self.runs = kernel, runs

    def train(self, name, cells=None, **values):
        "Run the train page, by default up to the end of training; the run's folder"
        error, _ = self.kernel.run(
            cells or before('run.fit()'), name=name, **{'train_for': '20 steps', **values}
        )
        assert not error, error
        return self.runs / name

    def evaluate(self, run, **values):
        "Run the evaluate page; its error, and the quantities in its table"
        error, _ = self.kernel.run(code(ROOT / EVALUATE), run=str(run), n_samples=4, **values)
        return error, set(self.kernel.cell('print(*numbers(left, measures))')[1].split())


@pytest.fixture(scope='module')
def shared(tmp_path_factory, home, faces):
    to = tmp_path_factory.mktemp('shared')
    with Jupyter(
        (ROOT / PAGE).parent,
        environment(home, RUNS_ROOT=to / 'runs', DATA_ROOT=faces),
        to / 'kernel.json',
    ) as kernel:
        yield Shared(kernel, to / 'runs')


conv = dict(encoder='conv', encoder_widths=[8, 16])
deconv = dict(decoder='deconv', decoder_widths=[16, 8])


def face(target):
    return dict(
        dataset='CelebA', dataset_options={'target': target, 'pixels': 32}, batch_size=32, lr=0.003
    )


seen = {
    'VAE': {
        'loss',
        'distortion',
        'rate',
        'elbo',
        'log_likelihood',
        'plane/rate',
        'plane/distortion',
        'active_units/number',
    },
    'VIB': {'loss', 'distortion', 'rate', 'active_units/number'},
    'classifier': {'loss'},
}
of_classes, of_numbers = {'accuracy', 'calibration/ece'}, {'target_error/rmse', 'target_error/nll'}
classes = {
    'VAE': 'dlframe.vae.VAE',
    'VIB': 'dlframe.vib.VIB',
    'classifier': 'dlframe.classifier.Classifier',
}


@pytest.mark.parametrize(
    'model, values, more',
    [
        ('VAE', {**conv, **deconv}, set()),
        ('VIB', {'beta': 0.001, 'predictor_widths': [32]}, of_classes),
        ('VIB', {'beta': 0.001, **conv}, of_classes),
        ('classifier', {}, of_classes),
        ('classifier', conv, of_classes),
        ('VAE', {**face('landmarks'), **conv, **deconv}, set()),
        ('VIB', {**face('landmarks'), **conv, 'beta': 0.001}, of_numbers),
        ('VIB', {**face('Smiling'), **conv, 'beta': 0.001}, of_classes),
        ('classifier', {**face('attributes'), **conv}, of_classes),
    ],
    ids=[
        'VAE digits conv',
        'VIB digits mlp',
        'VIB digits conv',
        'classifier digits mlp',
        'classifier digits conv',
        'VAE faces',
        'VIB landmarks',
        'VIB smiling',
        'classifier attributes',
    ],
)
def test_model(model, values, more, shared, request):
    """The last cell of each page asserts: the model learned; the model that was loaded is the one
    that was trained
    """
    # 300 faces are too few for smiles; test_faces.py has more
    cells = code()[:-1] if 'Smiling' in str(values) else code()
    run = shared.train(
        request.node.callspec.id,
        cells,
        model=model,
        train_for='60 steps',
        evaluate_every='30 steps',
        **values,
    )
    assert json.loads((run / 'manifest.json').read_text())['model']['cls'] == classes[model]
    assert shared.evaluate(run, n=30) == ('', seen[model] | more)


def test_a_model_that_is_not_the_one_that_was_trained(shared):
    run = shared.train('changed')
    for other in 'valid', 'train+test':
        assert shared.evaluate(run, split=other)[0] == ''
    file = run / 'checkpoints/model.safetensors'
    safetensors.torch.save_file(
        {k: v + 0.01 for k, v in safetensors.torch.load_file(file).items()}, file
    )
    # the list of checksums says so, and those of the last checkpoint are as good
    assert shared.evaluate(run)[0] == ''
    (run / 'SHA256SUMS').unlink()
    assert shared.evaluate(run)[0].startswith(
        'AssertionError: the model that was loaded is not the one that was trained'
    )


def test_runs_on_the_plane(shared):
    for beta in 0.1, 1.0:
        run = shared.train(f'beta {beta}', beta=beta)
    assert shared.evaluate(run)[0] == ''
    assert "'beta 1.0'" in shared.kernel.cell('print(list(curves))')[1]
    assert int(shared.kernel.cell('print(len(curves))')[1]) >= 2


def weights_of(run):
    return load(run).model.state_dict()


def same(a, b, part=''):
    return all(torch.equal(v, b[k]) for k, v in a.items() if k.startswith(part))


def manifest_of(run):
    return json.loads((run / 'manifest.json').read_text('utf-8'))


def last(run, name):
    return load(run).metrics[name].dropna().iloc[-1]


def test_schedule(shared):
    "With a learning rate that falls to nothing after 5 steps, 20 steps lead where 5 do"
    schedule = {'StepLR': {'step_size': '5 steps', 'gamma': 0.0}}
    short = shared.train('schedule 5', train_for='5 steps', schedule=schedule)
    long = shared.train('schedule 20', schedule=schedule)
    without = shared.train('no schedule')
    assert manifest_of(long)['optimization']['schedule'] == schedule
    assert weights(short) == weights(long) != weights(without)


def test_groups(shared):
    "What does not learn is the same after 5 steps and after 20"
    groups = {'encoder': {'lr': 0.0}}
    short = shared.train('groups 5', train_for='5 steps', groups=groups)
    long = shared.train('groups 20', groups=groups)
    assert manifest_of(long)['optimization']['groups'] == groups
    assert same(weights_of(short), weights_of(long), 'encoder') and not same(
        weights_of(short), weights_of(long), 'decoder'
    )


def test_weights(shared):
    "A weight of the rate is a beta, also for who loads the run"
    weighed, beta = shared.train('weighed', weights={'rate': 0.1}), shared.train('beta', beta=0.1)
    assert manifest_of(weighed)['optimization']['weights'] == {'rate': 0.1}
    assert manifest_of(weighed)['model']['beta'] == 1.0
    assert weights(weighed) == weights(beta)
    assert [last(weighed, f'{split}/loss') for split in ('train', 'valid')] == [
        last(beta, f'{split}/loss') for split in ('train', 'valid')
    ]
    assert shared.evaluate(weighed)[0] == ''


def test_accumulate(shared):
    """Two gradients of half a batch are one of the whole: the networks start alike and learn alike,
    but for noise and rounding
    """
    whole = shared.train('whole', model='classifier')
    pieces = shared.train('pieces', model='classifier', accumulate=2)
    assert manifest_of(pieces)['optimization']['accumulate'] == 2
    assert last(pieces, 'valid/loss') == pytest.approx(last(whole, 'valid/loss'), rel=1e-4)
    assert weights(pieces) != weights(whole)  # sums in another order


def test_beta_over(shared):
    run = shared.train('ramp', beta=0.5, beta_over='40 steps')
    beta, metrics = manifest_of(run)['model']['beta'], load(run).metrics
    assert beta['cls'] == 'dlframe.ramps.Ramp' and (beta['end'], beta['over']) == (0.5, '40 steps')
    first, end = metrics.loc[0], metrics.loc[20]
    assert first['valid/loss'] == pytest.approx(first['valid/distortion'])
    assert end['valid/loss'] == pytest.approx(
        end['valid/distortion'] + 0.5 * 19 / 40 * end['valid/rate']
    )
    assert shared.evaluate(run)[0] == ''


def test_resume(shared, home, faces):
    "Half the steps and then the other half are all of them, to the last bit"
    often = dict(evaluate_every='30 steps', log_every='30 steps')
    half = shared.train('half', train_for='30 steps', **often)
    whole = shared.train('all', train_for='60 steps', **often)
    assert weights(half) != weights(whole)
    good(
        papermill(
            PAGE,
            shared.runs / 'resumed.ipynb',
            environment(home, RUNS_ROOT=shared.runs, DATA_ROOT=faces),
            resume=half,
            train_for='60 steps',
        )
    )
    assert [r['steps'] for r in manifest_of(half)['resumed']] == [30]
    assert weights(half) == weights(whole) and numbers(half) == numbers(whole)


def test_resume_for_longer_than_usual(shared):
    "What is asked for counts, also if it is what a new run gets that is asked for nothing"
    run = shared.train('short', train_for='1 epoch')
    shared.train('short', resume=str(run), train_for='100 epochs', evaluate_every='100 epochs')
    assert manifest_of(run)['run']['train_for'] == '100 epochs'
    assert read_metrics(run)['epochs'].max() == 100


OWN = 'from dlframe.vae import VAE\nclass Own(VAE): pass\n'


def test_resume_with_classes_of_ones_own(shared, tmp_path):
    "A module is trusted by its file; without it the page refuses, and says so"
    file = tmp_path / 'own_of_page.py'
    file.write_text(OWN)
    assert (
        shared.kernel.cell(
            f'import sys; sys.path.insert(0, {str(tmp_path)!r}); from own_of_page import Own'
        )[0]
        == ''
    )
    cells = [cell.replace('return df.VAE(', 'return Own(') for cell in before('run.fit()')]
    run = shared.train('own', cells, train_for='10 steps')
    assert manifest_of(run)['model']['cls'] == 'own_of_page.Own'
    error, _ = shared.kernel.run(code(), resume=str(run), train_for='20 steps')
    assert (
        'model: `cls` must come from dlframe' in error and "add packages=['own_of_page']" in error
    )
    for packages, train_for in (['own_of_page'], '20 steps'), ([str(file)], '30 steps'):
        error, said = shared.kernel.run(
            code(), resume=str(run), train_for=train_for, packages=packages
        )
        assert error == '' and 'validation loss' in said
        assert shared.evaluate(run, packages=packages)[0] == ''
    assert 'packages=' in shared.evaluate(run)[0]


def test_several_loggers(shared):
    run = shared.train('loggers', logger='tensorboard+wandb-offline')
    logs = [
        (run / 'metrics.csv'),
        *run.rglob('events.out.tfevents.*'),
        *run.rglob('offline-run-*/*.wandb'),
    ]
    assert len(logs) == 3 and all(b'valid/elbo' in f.read_bytes() for f in logs)


def test_export(shared, tmp_path):
    run = shared.train('exported')
    assert shared.evaluate(run, export=str(tmp_path / 'hub'))[0] == ''
    assert same(weights_of(tmp_path / 'hub'), weights_of(run))
    assert shared.evaluate(tmp_path / 'hub') == ('', seen['VAE'])


@pytest.mark.parametrize('model', ['GAN', 'VAEGAN'])
def test_gan(model, shared, home, tmp_path):
    "The page's last cell asserts that its samples are more like the data than at the start"
    env = environment(home, RUNS_ROOT=tmp_path / 'runs')
    few = dict(
        generator_widths='[64]',
        discriminator_widths='[64]',
        train_for='60 epochs',
        evaluate_every='200 generator_steps',
    )
    good(papermill(GAN, tmp_path / 'out.ipynb', env, model=model, name=model, **few))
    error, quantities = shared.evaluate(tmp_path / 'runs' / model, split='valid')
    assert error == ''
    assert {
        'generator.loss' if model == 'GAN' else 'decoder.loss',
        'discriminator.loss',
    } <= quantities


def test_likelihoods_by_the_recipe_of_another_paper(home, tmp_path):
    """Gates, a beta that rises and a VampPrior; trained on from where it is when the page is asked
    for more
    """
    env = environment(home, RUNS_ROOT=tmp_path / 'runs')
    for passes in 2.0, 3.0:
        asked = dict(
            recipe='tomczak',
            binarize='static',
            warm_up=2.0,
            passes=passes,
            samples='[1]',
            priors='[vamp]',
            prior_options='{vamp: {components: 7, limits: [0, 1]}}',
        )
        good(
            papermill(
                LIKELIHOODS,
                tmp_path / f'{passes}.ipynb',
                env,
                test_images=50,
                test_samples=20,
                **asked,
            )
        )
        run = tmp_path / 'runs' / 'tomczak-digits-static-VAE-vamp'
        assert read_metrics(run)['epochs'].max() == passes
    model = load(run).model
    assert (
        float(model.beta()),
        model.prior.pseudo_inputs().shape,
        [type(layer).__name__ for layer in model.encoder.body.layers],
    ) == (1.0, (7, 1, 8, 8), ['Linear', 'GLU'] * 2)
    assert (model.encoder.body.init, model.encoder.limits, model.decoder.limits[1]) == (
        'he',
        (-3, 1),
        math.log1p(-1e-5) - math.log(1e-5),
    )
    assert read(run / 'manifest.json')['optimization']['optimizer'] == 'AdamNormGrad'
    assert any('VAE, vamp' in ''.join(t) for t in shown(tmp_path / '3.0.ipynb', 'text/html'))
    for other, said in (
        (dict(passes=2.0), '`passes` must be at least 3, for which the run in '),
        (dict(seed=1), '`run.seed` must be 0, as in '),
        (dict(warm_up=1.0), "`model.beta.over` must be '2.0 epochs', as in "),
        (dict(prior_options='{vmap: {}}'), "did you mean 'vamp'?"),
    ):
        r = papermill(
            LIKELIHOODS,
            tmp_path / 'other.ipynb',
            env,
            test_images=50,
            test_samples=20,
            **{**asked, **other},
        )
        assert r.returncode and said in r.stderr and read_metrics(run)['epochs'].max() == 3, (
            r.stderr
        )


def test_evaluate_by_papermill(home, tmp_path):
    "Where there is no run it makes one, and looks at it"
    good(
        papermill(
            EVALUATE,
            tmp_path / 'look.ipynb',
            environment(home, RUNS_ROOT=tmp_path / 'runs'),
            split='valid',
            n=50,
        )
    )
    assert len([*(tmp_path / 'runs').iterdir()]) == 1
    assert any('log_likelihood' in ''.join(t) for t in shown(tmp_path / 'look.ipynb', 'text/html'))
    assert len(shown(tmp_path / 'look.ipynb', 'image/png')) >= 6 and 'are seen again' in (
        tmp_path / 'look.ipynb'
    ).read_text('utf-8')


def test_evaluate_takes_the_newest_run(shared):
    for name in 'older', 'newer':
        shared.train(name, train_for='5 steps')
    assert shared.evaluate('', n=30)[0] == ''
    assert shared.kernel.cell('print(folder.name)')[1] == 'newer\n'
