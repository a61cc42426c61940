"""What a sweep left, in every state a trial can be in, as a table and as a report; from a folder,
from a database, and from W&B's server on loopback
"""

import json
import os
import shlex
import shutil
import time
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from experiment import Jupyter, code, environment, left, once, papermill, start
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from test_wandb import environment as online
from test_wandb import python
from tree import BIN, ROOT
from wandb_stub import ENTITY, server

from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Checkpoint, Evaluate
from dlframe.evaluation import Terms
from dlframe.image_sets import images
from dlframe.loading import best
from dlframe.loggers import read_metrics
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.trial_table import logged, newest_sweep, outcome, trials
from dlframe.vae import VAE

REPORT = 'nbs/experiments/sweep_report.ipynb'

TRAIN = """
import sys
from contextlib import redirect_stdout
from pathlib import Path
from pytorch_lightning import seed_everything
from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.evaluation import ELBO, Terms
from dlframe.image_sets import images
from dlframe.latents import RateDistortion
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.vae import VAE

for name, beta in zip(sys.argv[2::2], map(float, sys.argv[3::2])):
    seed_everything(0, verbose=False)
    q, p = encoder('mlp', (1, 8, 8), 4, [16]), decoder('mlp', 4, (1, 8, 8), [16])
    vae = VAE(q, p, prior('standard_normal', 4), beta)
    optimization = Optimization(vae, images('digits'), lr=.01)
    looks = [Evaluate(e('valid'), '2 epochs') for e in (Terms, ELBO, RateDistortion)]
    run = Run(optimization, '4 epochs', looks, parameters={'beta': beta, 'z_dim': 4})
    run.place = Path(sys.argv[1])/name
    run.fit()
"""

trained = {f'x7k2-{i:04d}': beta for i, beta in enumerate([0.03, 0.1, 0.3, 1.0, 3.0])}


def given(run, beta, **more):
    return {
        'run': run,
        'config': {
            'beta': beta,
            'z_dim': 4,
            'groups': {'encoder': {'lr': 0.01 if beta < 1 else 0.1}},
        },
        **more,
    }


def study(folder, storage=None):
    "Of Optuna, called like its folder, with a trial in each state"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(
        storage=storage or JournalStorage(JournalFileBackend(str(folder / 'journal.log'))),
        study_name=folder.name,
        direction='maximize',
    )

    def add(state, attrs, **more):
        trial = create_trial(state=state, user_attrs=attrs, **more)
        if trial.datetime_complete:
            trial.datetime_start = trial.datetime_complete - timedelta(seconds=90)
        made.add_trial(trial)

    for run, beta in trained.items():
        add(TrialState.COMPLETE, given(run, beta), value=-30.0)
    add(
        TrialState.PRUNED,
        given('x7k2-0005', 0.2, reason='stopped early: below the others'),
        value=-31.0,
    )
    add(
        TrialState.FAIL,
        given('x7k2-0006', 9.0, reason='FloatingPointError: `loss` must be finite | <b>'),
    )
    add(TrialState.RUNNING, given('x7k2-0007', 0.5))
    add(TrialState.COMPLETE, given('x7k2-0008', 0.6), value=-29.5)
    add(TrialState.WAITING, given('x7k2-0009', 0.7))
    add(TrialState.WAITING, {})  # one too many, which nobody has begun


@pytest.fixture(scope='session')
def home(tmp_path_factory):
    return once(tmp_path_factory, 'report home')


@pytest.fixture(scope='session')
def sweep(tmp_path_factory, home):
    """A folder as agents leave it, one of them killed: x7k2-0007 says that it is running, and 0008
    was deleted
    """

    def make(to):
        folder = to / 'betas'
        folder.mkdir()
        (folder / 'sweep.yaml').write_text('metric: {name: valid/elbo, goal: maximize}')
        r = start(
            BIN / 'python',
            '-c',
            TRAIN,
            folder,
            *(str(w) for run in trained.items() for w in run),
            env=environment(home),
        )
        assert r.returncode == 0, r.stderr
        for run, says in ('x7k2-0005', 'interrupted'), ('x7k2-0007', 'running'):
            shutil.copytree(folder / 'x7k2-0000', folder / run)
            for name in ['.lock', 'checkpoints/model.safetensors']:
                (folder / run / name).unlink()
            (folder / run / 'status.json').write_text(json.dumps({'state': says}))
        for run in [*trained, 'x7k2-0006']:
            (folder / f'{run}.ipynb').write_text('{}')
        study(folder)

    return once(tmp_path_factory, 'swept', make) / 'betas'


def test_every_trial_is_a_row(sweep):
    before = left(sweep)
    table = trials(sweep)
    assert left(sweep) == before
    assert dict(zip(table.index, table['state'])) == {
        **dict.fromkeys(trained, 'finished'),
        'x7k2-0005': 'stopped early',
        'x7k2-0006': 'failed',
        'x7k2-0007': 'cut short',
        'x7k2-0008': 'finished',
        'x7k2-0009': 'waiting',
    }
    assert {run: why for run, why in table['reason'].items() if why} == {
        'x7k2-0005': 'stopped early: below the others',
        'x7k2-0006': 'FloatingPointError: `loss` must be finite | <b>',
        'x7k2-0008': 'its folder is not there',
    }
    assert table.attrs['parameters'] == ['beta', 'groups.encoder.lr']
    assert table.loc['x7k2-0006', 'groups.encoder.lr'] == 0.1
    for ended in 'finished', 'cut short':
        assert table['valid/elbo'][table['state'] == ended].is_monotonic_decreasing
    assert table['state'].tolist()[:6] == ['finished'] * 6
    assert table.loc['x7k2-0008', 'valid/elbo'] == -29.5
    assert table.loc['x7k2-0003', 'seconds'] == 90
    assert table.loc['x7k2-0003', 'notebook'] == 'x7k2-0003.ipynb'
    assert table.loc['x7k2-0005', 'notebook'] == ''


def test_the_best_is_what_best_loads(sweep):
    for more in (
        {},
        {'by': 'last'},
        {'metric': 'valid/loss'},
        {'metric': 'valid/loss', 'goal': 'maximize'},
        {'metric': 'valid/plane/rate', 'goal': 'maximize'},
    ):
        table = trials(sweep, **more)
        assert best(sweep, **more).folder.name == next(
            run for run in table.index if (sweep / run / 'checkpoints').is_dir()
        ), more
    assert best(sweep, 'valid/loss').model.beta == 0.03 and best(sweep).model.beta > 0.03


@pytest.mark.parametrize('keep', [True, False])
def test_the_weights_are_those_of_the_value(keep, tmp_path):
    """The rate is smallest after an epoch, and larger at the end: the best by that moment has the
    weights of that moment, or is refused
    """
    torch.manual_seed(0)
    vae = VAE(
        encoder('mlp', (1, 8, 8), 4, [16]),
        decoder('mlp', 4, (1, 8, 8), [16]),
        prior('standard_normal', 4),
    )
    run = Run(
        Optimization(vae, images('digits'), lr=0.01),
        '2 epochs',
        [Evaluate(Terms('valid'), '1 epoch')],
        callbacks=[Checkpoint('1 epoch', keep=True)] if keep else [],
    )
    run.place = tmp_path / 'runs/a'
    run.fit()
    rates = read_metrics(run.place)['valid/rate'].dropna()
    at = rates.idxmin()
    assert at < rates.index[-1] and rates[at] < rates.iloc[-1] / 2

    def found(by):
        return best(tmp_path / 'runs', 'valid/rate', by=by).look(Terms('valid')).values['rate']

    # float32, in batches of another size
    assert found('last') == pytest.approx(rates.iloc[-1], rel=1e-5)
    if keep:
        assert found('best') == pytest.approx(rates[at], rel=1e-5)
    else:
        with pytest.raises(
            ValueError,
            match=f'valid/rate of a was .* at step {at}, and is .* with the weights of its end',
        ):
            found('best')


def add(sweep, to, name, value, runs):
    "A copy of a sweep, in whose runs something more is logged at the end"
    shutil.copytree(sweep, to)
    for run in runs:
        rows = (to / run / 'metrics.csv').read_text()
        (to / run / 'SHA256SUMS').unlink(missing_ok=True)
        (to / run / 'metrics.csv').write_text(
            f'{rows}{name},{value},{rows.splitlines()[-1].split(",", 2)[2]}\n'
        )
    return to


def test_a_better_value_that_is_not_finished(sweep, tmp_path, capsys):
    "Neither `best` nor the table takes it for the best; both name it"
    folder = add(sweep, tmp_path / 'betas', 'valid/elbo', -1.0, ['x7k2-0005', 'x7k2-0007'])
    table = trials(folder)
    assert table['valid/elbo'].max() == -1 and table['valid/elbo'].iloc[0] < -1
    assert outcome(table).endswith(
        'Not compared, for not finished: x7k2-0005 (stopped early, -1), x7k2-0007 (cut short, -1).'
    )
    capsys.readouterr()
    assert best(folder).folder.name == next(run for run in table.index if run in trained)
    assert 'x7k2-0005 (interrupted)' in (said := capsys.readouterr().out)
    assert 'x7k2-0007 (cut short)' in said
    assert best(folder, unfinished=True).folder.name in ('x7k2-0005', 'x7k2-0007')


def test_goals(sweep, tmp_path):
    "Known for the library's own metrics, asked for otherwise"
    folder = add(sweep, tmp_path / 'betas', 'valid/score', 7.0, trained)
    for look in trials, best:
        with pytest.raises(ValueError, match='`goal` must be given for valid/score'):
            look(folder, metric='valid/score')
        assert look(folder, metric='valid/score', goal='minimize') is not None
    assert {
        m: trials(folder, metric=m).attrs['goal']
        for m in ('valid/elbo', 'valid/loss', 'valid/distortion', 'valid/plane/rate')
    } == {
        'valid/elbo': 'maximize',
        'valid/loss': 'minimize',
        'valid/distortion': 'minimize',
        'valid/plane/rate': 'minimize',
    }


def test_in_a_database(sweep, tmp_path):
    url = f'sqlite:///{tmp_path / "studies.db"}'
    study(sweep, url)
    before = left(tmp_path, sweep)
    assert trials(sweep, url).equals(trials(sweep))
    assert left(tmp_path, sweep) == before
    for storage, said in (
        (f'sqlite:///{tmp_path / "studis.db"}', 'which is not there'),
        ('postgresql://me:secret@127.0.0.1:9/x', '`storage` must be'),
    ):
        with pytest.raises((OSError, ValueError)) as e:
            trials(sweep, storage)
        assert said in str(e.value) and 'secret' not in str(e.value)
    (tmp_path / 'other').mkdir()
    with pytest.raises(KeyError, match="`study` must be one of 'betas', got 'other'"):
        trials(tmp_path / 'other', url)
    assert left(tmp_path, sweep) == {**before, tmp_path: False, tmp_path / 'other': False}


def test_a_folder_without_a_study(sweep, tmp_path):
    shutil.copytree(sweep, tmp_path / 's', ignore=shutil.ignore_patterns('journal.log'))
    table = trials(tmp_path / 's')
    assert sorted(table.index) == [*trained, 'x7k2-0005', 'x7k2-0007'] and table.attrs[
        'parameters'
    ] == ['beta']
    assert dict(table['state'][['x7k2-0000', 'x7k2-0005', 'x7k2-0007']]) == {
        'x7k2-0000': 'finished',
        'x7k2-0005': 'cut short',
        'x7k2-0007': 'cut short',
    }


def test_what_is_no_sweep(sweep, tmp_path):
    for nothing in tmp_path, tmp_path / 'nowhere', sweep / 'sweep.yaml', '':
        with pytest.raises(FileNotFoundError, match='must be a folder with'):
            trials(nothing if nothing else tmp_path)
    with pytest.raises(KeyError, match="did you mean 'valid/elbo'?"):
        trials(sweep, metric='valid/ebol')
    assert newest_sweep(tmp_path) is None and newest_sweep(sweep.parent) == sweep


def test_a_thousand_trials(tmp_path):
    "In a few seconds, of 300 logged numbers each"
    big = tmp_path / 'big'
    rows = ''.join(
        f'{split}/{q},{q_value},{s},{s / 10},{s * 128},{s / 7}\n'
        for s in range(50)
        for split in ('train', 'valid')
        for q, q_value in (('loss', 3.0), ('elbo', -3.0), ('rate', 1.0))
    )
    for i in range(1000):
        (folder := big / f't-{i:04d}').mkdir(parents=True)
        (folder / 'metrics.csv').write_text(
            f'name,value,steps,epochs,samples,seconds\n{rows}valid/loss,{i / 1000},60,6,9,9\n'
        )
        (folder / 'manifest.json').write_text(json.dumps({'parameters': {'seed': i}}))
        (folder / 'status.json').write_text('{"state": "finished"}')
    began = time.process_time()
    table = trials(big)
    assert time.process_time() - began < 12
    assert list(table.index[:2]) == ['t-0000', 't-0001'] and len(table) == 1000


def good(r):
    assert r.returncode == 0, r.stdout + r.stderr
    return r


def shown(page):
    "Texts and pictures of an executed page"
    found = [o for c in json.loads(page.read_text('utf-8'))['cells'] for o in c.get('outputs', [])]
    return ''.join(
        ''.join(o.get('text') or o.get('data', {}).get('text/markdown', '')) + '\n' for o in found
    ).strip(), sum('image/png' in o.get('data', {}) for o in found)


def test_report(sweep, home, tmp_path):
    before = left(sweep)
    good(
        start(
            'papermill',
            '--engine',
            'dlframe',
            REPORT,
            tmp_path / 'report.ipynb',
            '-p',
            'sweep',
            sweep,
            '-p',
            'top',
            2,
            '-p',
            'x',
            'steps',
            env=environment(home),
        )
    )
    assert left(sweep) == before
    said, pictures = shown(tmp_path / 'report.ipynb')
    assert pictures == 6
    assert said.startswith(
        '10 trials: 6 finished, 1 stopped early, 1 cut short, 1 failed, 1 waiting. By last '
        'values, the largest valid/elbo is'
    )
    assert '](x7k2-0003.ipynb)' in said
    assert (
        '[x7k2-0006](x7k2-0006.ipynb) | failed | FloatingPointError: \\`loss\\` must be '
        'finite \\| &lt;b&gt; |' in said
    )
    assert f"model = best('{os.path.relpath(sweep, ROOT)}').model" in said


def test_report_of_a_sweep_that_has_just_begun(home, tmp_path):
    "A table still, and a sentence for each picture that there cannot be"
    folder = tmp_path / 'new'
    folder.mkdir()
    made = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / 'journal.log'))), study_name='new'
    )
    for _ in range(3):
        made.add_trial(create_trial(state=TrialState.RUNNING))
    good(papermill(REPORT, tmp_path / 'report.ipynb', environment(home), sweep=folder))
    said, pictures = shown(tmp_path / 'report.ipynb')
    assert said.startswith('3 trials: 3 running. None has logged valid/loss yet.')
    assert said.count('trial 2') == 1
    assert pictures == 0 and said.count('`table` must hold') == 6


@pytest.mark.parametrize(
    'values, said',
    [
        (
            {'sweep': 'nowhere'},
            'MissingFile: `where` must be a folder with runs, or a sweep of W&B like '
            "'entity/project/sweeps/id', got 'nowhere'",
        ),
        ({'metric': 'valid/ebol'}, "did you mean 'valid/elbo'?"),
        ({'goal': 'max'}, "did you mean 'maximize'?"),
        ({'by': 'first'}, '`by` must be one of'),
        ({'x': 'epoch'}, "did you mean 'epochs'?"),
        ({'top': 0}, '`top` must be at least 1, got 0'),
        ({'split': 'tset'}, "did you mean 'test'?"),
        ({'storage': 'sqlite:///nothing.db'}, 'which is not there'),
    ],
    ids=lambda v: ' '.join(v) if isinstance(v, dict) else '',
)
def test_report_refuses(values, said, sweep, kernel):
    before = left(sweep)
    error, _ = kernel.run(code(ROOT / REPORT), **{'sweep': str(sweep), **values})
    assert said in error and left(sweep) == before


@pytest.fixture(scope='module')
def kernel(tmp_path_factory, home):
    to = tmp_path_factory.mktemp('report')
    with Jupyter(
        (ROOT / REPORT).parent, environment(home, RUNS_ROOT=to / 'runs'), to / 'kernel.json'
    ) as kernel:
        yield kernel


def on_wandb(stub, sweep):
    "Give the server what runs have left, as their logger sends it"
    for run, beta in trained.items():
        numbers = {n: rows[-1][1] for n, rows in logged(sweep / run).items()}
        files = {
            f: (sweep / run / f).read_bytes()
            for f in ('manifest.json', 'metrics.csv', 'checkpoints/model.safetensors')
        }
        stub.run('test', run).update(
            sweep='sweep1',
            ended=[0],
            state='finished',
            files=files,
            summary={**numbers, '_runtime': 7, 'samples': {'_type': 'image-file'}},
            config={
                'beta': {'value': beta},
                'z_dim': {'value': 4},
                'manifest': {'value': {'run': run}},
            },
        )
    stub.run('test', 'x7k2-0009').update(
        sweep='sweep1',
        ended=[1],
        state='failed',
        config={'beta': {'value': 9.0}, 'z_dim': {'value': 4}},
    )
    stub.sweeps['sweep1'] = 'method: grid\nmetric: {name: valid/elbo, goal: maximize}'


def test_a_sweep_of_wandb(sweep, tmp_path):
    "It says what the folder says"
    with server() as s:
        on_wandb(s.stub, sweep)
        name = f'{ENTITY}/test/sweeps/sweep1'
        env = online(tmp_path, s.url, PATH=f'{BIN}:{os.environ["PATH"]}')
        said = json.loads(python(LOOK, name, home=tmp_path, url=s.url)[0].splitlines()[-1])
        good(
            start(
                'papermill',
                '--engine',
                'dlframe',
                ROOT / REPORT,
                tmp_path / 'report.ipynb',
                '-p',
                'sweep',
                name,
                '-p',
                'top',
                2,
                env=env,
                cwd=tmp_path,
            )
        )
        assert not s.stub.unknown
    report, pictures = shown(tmp_path / 'report.ipynb')
    here, best_here = trials(sweep).loc[list(trained)], trials(sweep, by='best').loc[list(trained)]
    order = [run for run in trials(sweep).index if run in trained]
    assert said['runs'] == [*order, 'x7k2-0009']
    assert said['states'] == ['finished'] * 5 + ['failed']
    assert said['attrs'] == {
        'sweep': name,
        'metric': 'valid/elbo',
        'goal': 'maximize',
        'by': 'last',
        'parameters': ['beta'],
    }
    assert said['last'] == here['valid/elbo'][order].tolist()
    assert said['best'] == best_here['valid/elbo'].sort_values(ascending=False).tolist()
    assert said['seconds'] == 7
    assert said['folder'] == f'{ENTITY}/test/{order[0]}'
    assert said['loaded'] == order[0]
    assert pictures == 6 and report.startswith(
        '6 trials: 5 finished, 1 failed. By last values, the largest valid/elbo is'
    )
    assert (
        f'/{ENTITY}/test/runs/{order[0]})' in report and f"model = best('{name}').model" in report
    )


LOOK = """
import json, sys
from dlframe.loading import best
from dlframe.trial_table import trials
table, whole = trials(sys.argv[1]), trials(sys.argv[1], by='best')
print(json.dumps({
    'runs': [*table.index],
    'states': [*table['state']],
    'attrs': table.attrs,
    'last': table['valid/elbo'].dropna().tolist(),
    'best': whole['valid/elbo'].dropna().tolist(),
    'seconds': table['seconds'].iloc[0],
    'folder': table['folder'].iloc[0],
    'loaded': best(sys.argv[1]).folder.name,
}))
"""

# The commands of the README


def readme_commands():
    "What the README tells a reader to type, by their first words"
    lines = (ROOT / 'README.md').read_text('utf-8').splitlines()
    typed = [
        line.split(' #')[0].strip()
        for line in lines
        if line.startswith(('make train NAME=', 'dlframe-agent ', 'papermill '))
    ]
    return {
        first: [shlex.split(line) for line in typed if line.startswith(first)]
        for first in ('make', 'dlframe-agent', 'papermill')
    }


def tiny(words, **smaller):
    """The words of `make train NAME=… ARGS=…` as those of papermill, with a few parameters made
    small
    """
    name, args = (
        next(w.partition('=')[2] for w in words if w.startswith(f'{k}=')) for k in ('NAME', 'ARGS')
    )
    return name, [
        *shlex.split(args),
        '-p',
        'name',
        name,
        *(w for k, v in smaller.items() for w in ('-p', k, v)),
    ]


def test_two_commands_of_the_readme_and_their_report(home, tmp_path):
    "A dictionary that is empty in one of the runs, a model that knows no decoder: all is drawn"
    commands, runs = readme_commands(), tmp_path / 'runs'
    env = environment(home, RUNS_ROOT=runs)
    runs.mkdir()
    assert len(commands['make']) == 2
    for words in commands['make']:
        name, given = tiny(words, dataset='digits', train_for='4 steps')
        good(
            start(
                'papermill',
                '--engine',
                'dlframe',
                'nbs/experiments/train.ipynb',
                runs / f'{name}.ipynb',
                *given,
                env=env,
            )
        )
    (report,) = commands['papermill']
    at = [
        str(runs)
        if w == 'runs/vae_beta'
        else str(runs / 'report.ipynb')
        if w.endswith('report.ipynb') and w.startswith('runs')
        else w
        for w in report
    ]
    good(start(*at, env=env))
    said, pictures = shown(runs / 'report.ipynb')
    assert said.startswith('2 trials: 2 finished. By last values, the smallest valid/loss is')
    assert {'schedule.CosineAnnealingLR.T_max', 'model', 'beta', 'decoder'} <= {
        *trials(runs).attrs['parameters']
    }
    # two trials have no importances, one of them no distortion, and no evaluator suits both models
    assert pictures == 3 and said.count('must hold') == 3


def test_the_sweep_of_the_readme_and_its_report(home, tmp_path):
    """Two trials of its file, made small, by the agent that the README names; then the report
    beside them
    """
    commands = readme_commands()
    (agent,) = commands['dlframe-agent']
    given = yaml.safe_load((ROOT / agent[1]).read_text())
    given['parameters'] |= {
        'beta': {'values': [0.1, 1.0]},
        'seed': {'value': 0},
        'dataset': {'value': 'digits'},
        'train_for': {'value': '4 steps'},
        'logger': {'value': 'files'},
    }
    (tmp_path / Path(agent[1]).name).write_text(yaml.safe_dump(given))
    env = environment(home, RUNS_ROOT=tmp_path / 'runs')
    told = good(start(BIN / agent[0], tmp_path / Path(agent[1]).name, env=env)).stdout
    folder, (report,) = tmp_path / 'runs/vae_beta', commands['papermill']
    at = [
        str(folder)
        if w == 'runs/vae_beta'
        else str(folder / 'report.ipynb')
        if w == 'runs/vae_beta/report.ipynb'
        else w
        for w in report
    ]
    good(start(*at, env=env))
    said, _ = shown(folder / 'report.ipynb')
    table = trials(folder)
    assert said.startswith(
        '2 trials: 2 finished. By last values, the largest valid/elbo is '
        f'{table["valid/elbo"].iloc[0]:.4g}, of {table.index[0]}, beta '
    )
    assert (
        f'best valid/elbo {table["valid/elbo"].iloc[0]:.5g} ({table.index[0]}, by last values)'
        in told.splitlines()[-1]
    )
    assert best(folder).folder == folder / table.index[0]
