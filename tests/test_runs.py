"A run is in one place, is what its manifest says, can be built again, and says how to go on"

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from experiment import environment

from dlframe import run as run_module
from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.evaluation import Terms
from dlframe.image_sets import Digits, images
from dlframe.loading import load
from dlframe.manifests import _difference
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.reruns import main, rerun
from dlframe.run import Run
from dlframe.specs import Part, build, make, override, read, spec, write
from dlframe.vae import VAE


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    "Runs go to a folder of their own, and the process comes back to its folder"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path / 'runs'))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    return tmp_path / 'runs'


def vae(beta=1.0, **parts):
    pl.seed_everything(0, verbose=False)
    made = {
        'encoder': encoder('mlp', (1, 8, 8), 2, [8]),
        'decoder': decoder('mlp', 2, (1, 8, 8), [8]),
        'prior': prior('standard_normal', 2),
    }
    return VAE(**{**made, **parts}, beta=beta)


def new_run(model=None, data=None, **options):
    options = {'train_for': '4 steps', 'log_every': '1 step', **options}
    return Run(Optimization(model or vae(), data or images('digits')), **options)


# Place


class Moves(Part, pl.Callback):
    "Moves the process to another folder after a step"

    def __init__(self, to):
        self.to = to

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        os.chdir(self.to)


@pytest.mark.parametrize(
    'variables',
    [
        {},
        {'RUNS_ROOT': 'runs'},
        {'RUNS_ROOT': 'runs', 'DEVICE_NAME': 'here', 'DLFRAME_DEVICES': 'devices.yaml'},
    ],
    ids=['unset', 'relative', 'relative profile'],
)
def test_a_run_stays_where_it_began(variables, tmp_path, monkeypatch):
    monkeypatch.delenv('RUNS_ROOT')
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'devices.yaml').write_text('here: {threads: 1}')
    run = new_run(
        name='one',
        callbacks=[Moves(str(tmp_path / 'elsewhere'))],
        evaluations=[Evaluate(Terms('valid'), '1 step')],
    ).fit()
    assert Path.cwd() == tmp_path / 'elsewhere'
    assert run.folder == tmp_path / 'runs/one' and run.done
    assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob('*.json')} == {
        'runs'
    } and not any((tmp_path / 'elsewhere').iterdir())
    monkeypatch.chdir('/')
    assert load(run.folder).metrics.index[-1] == 4


def test_what_was_loaded_stays_where_it_is(tmp_path, monkeypatch):
    new_run(name='one').fit()
    left = load('runs/one')
    monkeypatch.chdir('/')
    assert left.folder == tmp_path / 'runs/one'


class OfFiles(Digits):
    "Digits that look for their files whenever a split is opened"

    def __init__(self, root=None):
        super().__init__()
        self.root, self.asked = root, []

    def open(self, name):
        self.asked.append(self.place(self.root))
        return super().open(name)


@pytest.mark.parametrize('given', [None, 'data'])
def test_all_splits_come_from_one_folder(given, tmp_path, monkeypatch):
    monkeypatch.setenv('DATA_ROOT', 'data')
    (tmp_path / 'elsewhere').mkdir()
    data = OfFiles(given)
    new_run(data=data, name='one', callbacks=[Moves(str(tmp_path / 'elsewhere'))]).fit()
    data['test']
    assert data.asked == [tmp_path / 'data'] * 2


# One optimization, one run


def test_an_optimization_is_trained_once(root):
    first = new_run(name='first').fit()
    for train_for in '4 steps', '8 steps':
        with pytest.raises(
            ValueError, match='`optimization` must be a new one, got one that has trained 4 steps'
        ):
            Run(first.optimization, train_for, name='second').fit()
    with pytest.raises(ValueError, match='has trained 4 steps'):
        first.fit()
    assert [p.name for p in root.iterdir()] == ['first']


@pytest.mark.parametrize('loaded', [False, True])
def test_weights_of_an_earlier_run_are_noted(loaded, root, capsys):
    first = new_run(name='first').fit()
    trained = load(first.folder).model if loaded else first.optimization.model
    whole = new_run(trained, name='whole')
    part = new_run(vae(encoder=trained.encoder), name='part')
    new = new_run(name='new')
    noted = [
        read(run.fit().folder / 'manifest.json').get('started_from') for run in (part, whole, new)
    ]
    assert noted == [
        {'model.encoder': 'first, 4 steps'},
        {'model': 'first, 4 steps', 'model.encoder': 'part, 4 steps'},
        None,
    ]
    assert 'model.encoder starts from the weights of first, 4 steps' in capsys.readouterr().out
    rerun(read(root / 'part/manifest.json'))
    assert (
        'model.encoder started from the weights of first, 4 steps; this run starts from new ones'
        in capsys.readouterr().out
    )


def test_a_part_that_was_replaced_is_refused(root):
    run = new_run(name='one')
    run.optimization.model = vae(beta=4.0)
    with pytest.raises(
        ValueError, match='`model` of the optimization must be the one that it was made with'
    ):
        run.fit()
    assert not root.exists()


# What can be built again


def made_inside(base):
    class Inside(base):
        pass

    return Inside


class Changed(Digits):
    "Digits with an argument of any kind"

    def __init__(self, change=None):
        super().__init__()


class Callback(Part, pl.Callback):
    def __init__(self, *anything):
        pass


def double(x):
    return 2 * x


class Calls:
    def __call__(self, x):
        return x


lost = {
    'lambda': lambda x: x,
    'partial': functools.partial(double),
    'inner function': made_inside(Part).__init__,
    'inner class': made_inside(Part),
    'module': torch.nn.ReLU(),
    'method': [].append,
    'callable': Calls(),
    'bound': Calls().__call__,
    'tensor': torch.zeros(2),
    'inner part': made_inside(Changed)(),
    'inside a list': [[lambda x: x]],
    'inside a dict': {'a': {'b': lambda x: x}},
}


@pytest.mark.parametrize('name', lost)
@pytest.mark.parametrize('where', ['data', 'callbacks', 'evaluations', 'trainer'])
def test_what_is_lost_is_refused(name, where, root):
    thing = lost[name]

    class Look(Terms):
        pass

    options = {
        'data': {'data': Changed(thing)},
        'callbacks': {'callbacks': [Callback(thing)]},
        'trainer': {'trainer': {'plugins': [Callback(thing)]}},
        'evaluations': {'evaluations': [Evaluate(Look('valid'))]},
    }[where]
    with pytest.raises(TypeError):
        new_run(name='one', **options).manifest()
    assert not root.exists()


def test_what_is_lost_is_refused_before_training(root):
    for run in (
        new_run(made_inside(VAE)(*(getattr(vae(), n) for n in ('encoder', 'decoder', 'prior')))),
        new_run(data=made_inside(Digits)()),
        new_run(data=Changed(lambda x: x)),
    ):
        with pytest.raises(
            TypeError,
            match='must be of a class, or a function, that is found again by its name, got .*: '
            'define it at the top level',
        ):
            run.fit()
    assert not root.exists()


kept = {
    'own function': double,
    'own class': Changed,
    'torch.relu': torch.relu,
    'torch.sigmoid': torch.sigmoid,
    'relu': torch.nn.functional.relu,
    'gelu': torch.nn.functional.gelu,
    'logsigmoid': torch.nn.functional.logsigmoid,
    'class': torch.nn.GELU,
    'dtype': torch.float64,
    'part': made_inside,
    'number': 3.5,
    'list': ['a', [None]],
}


@pytest.mark.parametrize('name', kept)
def test_what_is_kept_is_built(name):
    run = new_run(name='one', data=Changed(kept[name]))
    parts = json.loads(json.dumps(run.parts()))
    assert run.packages == [__name__] and build(parts, __name__)['data']._made == {
        'change': kept[name]
    }


@pytest.mark.parametrize('name', ['torch.relu', 'own function'])
def test_what_is_kept_is_loaded_and_resumed(name):
    run = new_run(name='one', data=Changed(kept[name]), train_for='1 step').fit()
    left = load(run.folder, packages=__name__)
    assert left.data._made == {'change': kept[name]} and isinstance(left.data, Changed)
    assert len(Run.resume(run.folder, '2 steps', __name__).optimization.data['test']) > 0


def test_functions_of_torch_need_no_package():
    made = make(torch.nn.TransformerEncoderLayer, 8, 2, activation=torch.relu)
    assert build(json.loads(json.dumps(spec(made)))).activation is torch.relu and spec(made)[
        'activation'
    ] == {'ref': 'torch.relu'}


def test_make_refuses_a_function():
    def small(in_features):
        return torch.nn.Linear(in_features, 2)

    with pytest.raises(TypeError, match='`cls` must be a class'):
        make(small, 3)
    assert make(torch.nn.Linear, 3, 2)._made['in_features'] == 3


def test_a_class_that_was_defined_anew_is_refused(monkeypatch):
    old = Changed(1)
    monkeypatch.setattr(
        sys.modules[__name__], 'Changed', type('Changed', (Digits,), {'__module__': __name__})
    )
    with pytest.raises(TypeError, match='defined anew'):
        spec(old)
    assert spec(sys.modules[__name__].Changed())


# Classes of a script

SCRIPT = """
from dlframe.architectures import decoder, encoder
from dlframe.image_sets import images
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.vae import VAE
from dlframe.loading import load
class Own(VAE): pass
GUARD
    q, p = encoder('mlp', (1, 8, 8), 2, [8]), decoder('mlp', 2, (1, 8, 8), [8])
    net = Own(q, p, prior('standard_normal', 2))
    run = Run(Optimization(net, images('digits')), '2 steps', name='NAME').fit()
    for packages in '__main__', ['NAME'], __file__:
        assert isinstance(load(run.folder, packages=packages).model, Own)
"""


def script(folder, name, guarded):
    file = folder / f'{name}.py'
    guard = "if __name__ == '__main__':" if guarded else 'if True:'
    file.write_text(SCRIPT.replace('GUARD', guard).replace('NAME', name))
    return file


def test_classes_of_a_script_are_found_in_its_file(tmp_path, monkeypatch, root):
    home = tmp_path / 'home'
    home.mkdir()
    file = script(home, 'train_own', True)
    done = subprocess.run(
        [sys.executable, str(file)],
        env=environment(home, RUNS_ROOT=root),
        cwd=home,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "train_own.Own: of this script, so the run can be loaded with packages=['train_own'] in "
        f"its folder, elsewhere with packages=['{file}']\n" in done.stdout
    )
    manifest = read(root / 'train_own/manifest.json')
    assert manifest['model']['cls'] == 'train_own.Own' and manifest['made']['modules'] == {
        'train_own': str(file)
    }
    with pytest.raises(ValueError, match=r"if you trust it, add packages=\['train_own'\]"):
        load(root / 'train_own')
    with pytest.raises(ValueError, match=r"name its file: packages=\['train_own.py'\]"):
        load(root / 'train_own', packages='train_own')
    assert type(load(root / 'train_own', packages=file).model).__name__ == 'Own'
    monkeypatch.delitem(sys.modules, 'train_own')
    main(['--resume', str(root / 'train_own'), 'run.train_for=3 steps', '--package', str(file)])
    assert load(root / 'train_own', packages='train_own').metrics.index[-1] == 3


def test_a_script_does_not_train_when_it_is_imported(tmp_path, root):
    file = script(tmp_path, 'unguarded', False)
    write(
        {**new_run(name='one').manifest(), 'model': {**spec(vae()), 'cls': 'unguarded.Own'}},
        tmp_path / 'manifest.json',
    )
    with pytest.raises(
        ValueError,
        match='`unguarded` must not train while it is imported for its classes: put what trains '
        "under `if __name__ == '__main__':`",
    ):
        rerun(read(tmp_path / 'manifest.json'), packages=str(file))
    assert not root.exists() and 'unguarded' not in sys.modules


def test_a_class_of_a_notebook_is_named_with_its_cure():
    with pytest.raises(
        ValueError,
        match=r"got '__main__.Own', from the notebook or script of the run: define or import 'Own' "
        r"here, then add packages=\['__main__'\]",
    ):
        build({'cls': '__main__.Own'}, packages=['lab'])


def test_one_package_is_one_package():
    manifest = new_run(name='one', data=Changed(3)).manifest()
    assert build({'data': manifest['data']}, __name__)['data']._made == {'change': 3}
    assert override(manifest, {'data.change': 4}, __name__)['data']['change'] == 4
    for wrong in 'tc', ['t', 'c']:
        with pytest.raises(
            ValueError, match='Lightning|lightning, ' + ('tc,' if wrong == 'tc' else 't, c,')
        ):
            build({'cls': 'other.Own'}, wrong)


# Changes


@pytest.fixture
def parent():
    parameters = {
        'beta': 1.0,
        'prior': 'standard_normal',
        'train_for': '4 steps',
        'activation': 'ReLU',
        'epochs': 4,
        'lr': 0.001,
    }
    return read(new_run(name='parent', parameters=parameters).fit().folder / 'manifest.json')


@pytest.mark.parametrize(
    'path, value, said',
    [
        (
            'parameters.prior',
            'vamp',
            '`parameters.prior` must be the path of a part, for nothing is built from it; write '
            'model.prior=\'{"cls": "dlframe.priors.StandardNormalPrior"',
        ),
        ('parameters.beta', 0.2, 'write model.beta=0.2; or execute the notebook with -p beta 0.2'),
        ('parameters__beta', 0.2, 'write model.beta=0.2'),
        ('parameters.nothing', 1, 'for example model.beta=0.2'),
        ('parameters', {}, 'nothing is built from it'),
        ('run.parameters.beta', 0.2, 'write model.beta=0.2'),
        ('run.parameters', {'beta': 0.2}, 'nothing is built from it'),
        ('made.host', 'x', 'nothing is built from it'),
        ('resumed', [], 'nothing is built from it'),
        ('changes.model', 1, 'nothing is built from it'),
        ('beta', 0.2, 'no part has this name; write model.beta=0.2'),
    ],
)
def test_a_change_of_what_nothing_is_built_from_is_refused(path, value, said, parent, root):
    with pytest.raises(ValueError) as e:
        rerun(parent, {path: value})
    assert said in str(e.value) and [p.name for p in root.iterdir()] == ['parent']


def test_a_change_that_does_not_reach_the_run_is_refused(parent, root):
    spare = {**parent, 'other': {'beta': 1.0}, 'optimizer': {'lr': 1.0}}
    for path in 'other.beta', 'optimizer.lr', 'other':
        with pytest.raises(
            ValueError, match='that the run is made of, got a part that nothing refers to'
        ):
            rerun(spare, {path: 0.2})
    assert rerun(spare, {'model.beta': 0.2, 'run.name': 'reached'}).optimization.model.beta == 0.2


def test_a_rerun_keeps_parameters_and_marks_changes(parent):
    child = read(
        rerun(parent, {'model.beta': 0.2, 'run.train_for': '2 steps', 'run.name': 'child'}).folder
        / 'manifest.json'
    )
    assert child['parameters'] == {**parent['parameters'], 'beta': 0.2, 'train_for': '2 steps'}
    assert child['changes'] == {'model.beta': 0.2, 'run.train_for': '2 steps'} and child[
        'parent'
    ] == {'run': 'parent', 'time': parent['made']['time']}
    grand = read(
        rerun(child, {'model.encoder.body.activation': 'Tanh', 'run.name': 'grand'}).folder
        / 'manifest.json'
    )
    # one of two places that `activation` stands for
    assert grand['parameters'] == child['parameters'] and grand['parent']['run'] == 'child'
    assert grand['changes'] == {**child['changes'], 'model.encoder.body.activation': 'Tanh'}
    assert 'changes' not in read(
        rerun(parent, {'model.beta': 1.0, 'run.name': 'same'}).folder / 'manifest.json'
    )


def test_more_time_changes_the_parameter(parent, root):
    Run.resume(root / 'parent', '6 steps')
    after = read(root / 'parent/manifest.json')
    assert (after['parameters']['train_for'], after['changes'], after['run']['train_for']) == (
        '6 steps',
        {'run.train_for': '6 steps'},
        '6 steps',
    )


def test_a_path_is_named_once(parent, root):
    with pytest.raises(SystemExit, match='must name each path once'):
        main([str(root / 'parent/manifest.json'), 'model.beta=.1', 'model.beta=.2'])


# Interrupted


class Stop(Part, pl.Callback):
    "Asks for an end, as an interrupt does"

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.asked_to_stop = pl_module.counters['steps'] == 2 and not trainer.ckpt_path


@pytest.mark.parametrize(
    'prompt, parameters, kernel, said',
    [
        (True, {}, True, "run = Run.resume('FOLDER', packages=['test_runs'])"),
        (
            False,
            {'resume': ''},
            True,
            """papermill … -p resume FOLDER -p packages '["test_runs"]'""",
        ),
        (False, {}, True, 'dlframe-run --resume FOLDER --package test_runs'),
        (False, {'resume': ''}, False, 'dlframe-run --resume FOLDER --package test_runs'),
    ],
)
def test_the_line_that_is_printed_goes_on(prompt, parameters, kernel, said, monkeypatch, capsys):
    monkeypatch.setattr(run_module, 'at_prompt', lambda: prompt)
    if kernel:
        monkeypatch.setitem(sys.modules, 'ipykernel', sys)
    else:
        monkeypatch.delitem(sys.modules, 'ipykernel', raising=False)
    run = new_run(name='one', callbacks=[Stop()], parameters=parameters).fit()
    assert capsys.readouterr().out.endswith(
        'stopped after step 3, at 3 of 4 steps; resume with: '
        f'{said.replace("FOLDER", str(run.folder))}\n'
    )
    with pytest.raises(
        ValueError,
        match='`run` must be finished, got one that stopped after step 3, at 3 of 4 steps; '
        'resume with: ',
    ):
        run.require_finished()
    resumed = Run.resume(run.folder, packages=__name__)
    assert resumed.require_finished() is resumed and resumed.optimization.counters['steps'] == 4
    with pytest.raises(ValueError, match='`run` must be the one that Run.resume returned'):
        run.require_finished()
    assert run.restore_finished().require_finished().optimization.counters['steps'] == 4


@pytest.mark.parametrize('value, same', [(True, True), (False, False)])
def test_an_argument_that_an_earlier_release_did_not_have(value, same):
    "A trial that an earlier release began goes on, unless the new argument is used"
    now = spec(images('MNIST', split_folders=value))
    was = {k: v for k, v in now.items() if k != 'split_folders'}
    assert ('split_folders' in now) and (_difference(was, now, 'data') is None) == same


def test_a_rerun_is_listed_under_its_own_name():
    "The parameter `name` of the parent is not that of the run that is made from it"
    first = new_run(name='first', parameters={'name': 'first', 'beta': 1.0}).fit()
    second = rerun(read(first.folder / 'manifest.json'), {'run.name': 'second'})
    assert read(second.folder / 'manifest.json')['parameters'] == {'name': 'second', 'beta': 1.0}
