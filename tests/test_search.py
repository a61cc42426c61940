"""What a trial draws is distributed as W&B's own code draws it, who is stopped is stopped by W&B's
own code, too

W&B publishes its code as the package `sweeps`. Development requires 0.2.0, for 0.3.0 requires NumPy
below 2, which newer Pythons do not have. Against 0.2.0 early termination is tested through an
adapter, `wandb_stops`; with 0.3.0 installed, in an environment of its own, the same tests compare
with it directly: `python -m pytest tests/test_search.py -k 'stops or values'`.
"""

import inspect
import json
import math
import random
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from dlframe.goals import value
from dlframe.samplers import Grid, bands, sampler, size, stop, suggest
from dlframe.sweeps import Sweep, choices

with warnings.catch_warnings():  # its classes are written for an older pydantic
    warnings.simplefilter('ignore')
    from sweeps.grid_search import grid_search_next_runs
    from sweeps.hyperband_stopping import hyperband_stop_runs
    from sweeps.params import HyperParameterSet
    from sweeps.random_search import random_search_next_runs

    from sweeps import RunState, SweepRun

# 0.3.0 and later
knows_strict = 'strict' in inspect.getsource(inspect.getmodule(hyperband_stop_runs))

optuna.logging.set_verbosity(optuna.logging.WARNING)


def swept(method, parameters, **more):
    return Sweep(Path('sweep.yaml'), Path('train.ipynb'), method, choices(parameters), [], **more)


def study(sweep, token='x7k2', kind=None):
    return optuna.create_study(
        sampler=sampler(sweep, token, kind if sweep.method == 'bayes' else None)
    )


# Distributions


def d(distribution, **options):
    return {'distribution': distribution, **options}


specs = {
    'uniform': {'min': -1.5, 'max': 2.0},
    'uniform, whole ends': d('uniform', min=2, max=5),
    'int_uniform': {'min': -2, 'max': 8},
    'int_uniform, many': {'min': 10**6, 'max': 3 * 10**9},
    'q_uniform, int': d('q_uniform', min=5, max=100, q=8),
    'q_uniform, float': d('q_uniform', min=0, max=1, q=0.25),
    'q_uniform, no q': d('q_uniform', min=1, max=10),
    'log_uniform': d('log_uniform', min=-7, max=2),
    'log_uniform_values': d('log_uniform_values', min=0.001, max=10),
    'q_log_uniform': d('q_log_uniform', min=0, max=4, q=3),
    'q_log_uniform_values': d('q_log_uniform_values', min=1, max=50, q=2.5),
    'inv_log_uniform': d('inv_log_uniform', min=-1, max=3),
    'inv_log_uniform_values': d('inv_log_uniform_values', min=0.01, max=10.0),
    'normal': d('normal'),
    'normal, mu': d('normal', mu=3, sigma=0.5),
    'q_normal': d('q_normal', mu=10, sigma=4, q=2),
    'log_normal': d('log_normal', mu=-1, sigma=0.7),
    'q_log_normal': d('q_log_normal', mu=1, sigma=1, q=0.5),
    'beta': d('beta', a=2, b=5),
    'beta, usual': d('beta'),
    'q_beta': d('q_beta', a=0.5, b=0.5, q=0.1),
    'categorical': {'values': ['mlp', 'conv', 'resnet']},
    'categorical, equal': {'values': [1, 1.0, True, 0]},
    'categorical, 1 and 1.0': {'values': [1, 1.0, True, None, '1', [64], {'a': 1}, 1]},
    'probabilities': {'values': [2, 'a', 8.0], 'probabilities': [0.2, 0.7, 0.1]},
    'nested': {
        'parameters': {
            'lr': d('log_uniform_values', min=0.01, max=1),
            'depth': {'parameters': {'n': {'min': 1, 'max': 3}}},
        }
    },
    'constant': {'value': [1, 2.0]},
}
# names of parameters are those of Python
names = {name: f'p{i}' for i, name in enumerate(specs)}
draws, seed = 2000, 0


def plain(v):
    return v.item() if isinstance(v, np.generic) else v


def leaves(values, path=''):
    "Of what parameters with parameters draw, each one"
    return {
        k: v
        for name, inside in values.items()
        for k, v in (
            leaves(inside, f'{path}{name}.').items()
            if isinstance(inside, dict) and name in ('depth', names['nested'])
            else [(path + name, inside)]
        )
    }


def ours(parameters, n=draws):
    sweep = swept('random', parameters)
    trials = study(sweep)
    asked = [suggest(trials.ask(), sweep) for _ in range(n)]
    # and so it is stored
    assert json.dumps([suggest(t, sweep) for t in trials.trials]) == json.dumps(asked)
    found = [*map(leaves, asked)]
    return {k: [f[k] for f in found] for k in found[0]}


def theirs(parameters, n=draws):
    """Of the random search of `sweeps`, all draws of a range at once; of its first runs it is
    asserted that they are the same
    """
    random.seed(seed)
    found = HyperParameterSet.from_config(parameters)
    parts = np.array([[random.uniform(0.0, 1.0) for _ in found] for _ in range(n)]).T
    at_once = {
        p.name: p.ppf(u)
        for p, u in zip(found, parts)
        if 'categorical' not in p.type and p.type != p.CONSTANT
    }
    values = {
        name.replace(HyperParameterSet.NESTING_DELIMITER, '.'): [*map(plain, v)]
        for name, v in {
            p.name: at_once[p.name] if p.name in at_once else [p.ppf(x) for x in u]
            for p, u in zip(found, parts)
        }.items()
    }
    random.seed(seed)
    for i, run in enumerate(
        random_search_next_runs({'method': 'random', 'parameters': parameters}, n=20)
    ):
        assert leaves({k: v['value'] for k, v in run.config.items()}) == {
            k: v[i] for k, v in values.items()
        }
    return values


def p_value(ours, theirs):
    """Of one distribution behind both: Kolmogorov and Smirnov's test, or chi squared where there
    are few values, the rare ones taken together
    """
    key = lambda v: f'{v:.9g}' if isinstance(v, float) else json.dumps(v)
    counts = [Counter(map(key, side)) for side in (ours, theirs)]
    if len(counts[1]) > 200:
        return ks_2samp(ours, theirs).pvalue
    common = [k for k in counts[0] | counts[1] if counts[0][k] + counts[1][k] >= 20]
    table = np.array(
        [[*(c[k] for k in common), sum(n for k, n in c.items() if k not in common)] for c in counts]
    )
    table = table[:, table.sum(0) > 0]
    return 1.0 if table.shape[1] < 2 else chi2_contingency(table).pvalue


@pytest.fixture(scope='module')
def both():
    parameters = {names[name]: spec for name, spec in specs.items()}
    return ours(parameters), theirs(parameters)


@pytest.mark.parametrize('name', specs)
def test_distribution(name, both, record_property):
    mine, wandb = (
        {k: v for k, v in side.items() if k.split('.')[0] == names[name]} for side in both
    )
    assert mine.keys() == wandb.keys() and len(mine) == (2 if name == 'nested' else 1)
    for k in mine:
        p = p_value(mine[k], wandb[k])
        # a plain one, which can be sent to another process
        record_property('p', (k.replace(names[name], name), float(p)))
        assert p > 0.001
        assert {type(v) for v in mine[k]} == {type(v) for v in wandb[k]}
        assert all(json.loads(json.dumps(v)) == v for v in mine[k])


wrong = {  # what one could take a distribution for
    'uniform': d('log_uniform_values', min=0.001, max=2.0),
    'int_uniform': {'min': -2, 'max': 7},
    'q_uniform, int': {'values': [*range(5, 101, 8)]},
    'q_uniform, float': {'values': [0.0, 0.25, 0.5, 0.75, 1.0]},
    'log_uniform': d('log_uniform_values', min=1e-7, max=1e2),
    'log_uniform_values': {'min': 0.001, 'max': 10.0},
    'q_log_uniform': d('q_uniform', min=1, max=55, q=3),
    'inv_log_uniform': d('log_uniform', min=-1, max=3),
    'inv_log_uniform_values': d('log_uniform_values', min=0.1, max=100.0),
    'normal': d('normal', sigma=1.6),
    'log_normal': d('normal', mu=-1, sigma=0.7),
    'beta': d('beta', a=5, b=2),
    'q_beta': d('q_beta', q=0.1),
    'q_normal': d('q_normal', mu=10, sigma=4, q=1),
    'probabilities': {'values': [2, 'a', 8.0]},
    'categorical, 1 and 1.0': {'values': [1, 1, 1, None, '1', [64], {'a': 1}, 1]},
}


@pytest.mark.parametrize('name', wrong)
def test_a_wrong_distribution_is_found_out(name, both):
    assert p_value(ours({'p': wrong[name]})['p'], both[1][names[name]]) < 1e-6


odd = [
    {'min': -8e307, 'max': 8e307},
    {'min': -(2**63), 'max': 10**300},
    {'min': 2**60, 'max': 2**60 + 3},
    {'min': 0, 'max': 2**31 - 1},
    d('log_uniform', min=-700, max=700),
    d('log_uniform_values', min=5e-324, max=1e308),
    d('inv_log_uniform', min=-700, max=700),
    d('q_uniform', min=0, max=1e300, q=1e-3),
    d('q_normal', mu=1e300, sigma=1.0, q=7),
    d('q_normal', q=5e-324),
    d('beta', a=1e-300, b=1e-300),
    d('beta', a=1e300, b=1e300),
    d('q_beta', a=0.1, b=1e-9, q=10**300),
    d('log_normal', sigma=87.0),
    {'min': 1.0, 'max': 1 + 2**-52},
    d('log_uniform', min=0, max=1e-20),
]


@pytest.mark.parametrize('method, kind', [('random', None), ('bayes', 'tpe'), ('bayes', 'gp')])
def test_odd_ranges(method, kind):
    "Whatever a sweep file may ask for, a trial gets numbers that JSON has, and in the range"
    sweep = swept(method, {f'p{i}': spec for i, spec in enumerate(odd)})
    trials, dice = study(sweep, kind=kind), random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(11):  # a model answers the last
            trial = trials.ask()
            found = suggest(trial, sweep)
            assert json.loads(json.dumps(found, allow_nan=False)) == found
            for spec, v in zip(odd, found.values()):
                if (
                    'q' not in spec
                    and 'min' in spec
                    and spec.get('distribution') in (None, 'log_uniform_values')
                ):
                    assert spec['min'] <= v <= spec['max'] and type(v) is type(spec['min'])
            trials.tell(trial, dice.random())


# Grids

grids = {
    'lists': {'a': {'values': [1, 2, 3]}, 'b': {'values': ['x', None, True, [1, 2], {'c': 1}]}},
    'equal to Python': {
        'a': {'values': [1, 1.0, True, '1', 0, False, 0.0]},
        'b': {'min': 0, 'max': 1},
    },
    'twice': {'a': {'values': [1, 2, 1, [3], [3]]}},
    'ranges': {
        'z': {'min': -2, 'max': 3},
        'q': d('q_uniform', min=1, max=100, q=8),
        'r': d('q_uniform', min=0.1, max=1, q=0.1),
        's': d('q_uniform', min=0, max=2),
        'last': {'value': 3},
    },
    'ends of ranges': {
        'a': d('q_uniform', min=0, max=1, q=0.25),
        'b': d('q_uniform', min=0, max=10, q=5),
        'c': d('q_uniform', min=0, max=0.5, q=1),
        'd': d('q_uniform', min=1, max=10.0, q=2),
        'e': d('q_uniform', min=0.3, max=2, q=0.1),
    },
    'nested': {
        'opt': {
            'parameters': {
                'lr': {'values': [0.1, 0.01]},
                'depth': {'parameters': {'n': {'min': 1, 'max': 2}}},
            }
        },
        'a': {'values': [1, 2]},
    },
    'constants': {'a': {'value': 1}},
}


def text(point):
    "Numbers with the digits that adding steps leaves alone"
    return (
        json.dumps(point, sort_keys=True)
        if not isinstance(point, (dict, float))
        else f'{point:.11g} float'
        if isinstance(point, float)
        else json.dumps({k: text(v) for k, v in sorted(point.items())})
    )


@pytest.mark.parametrize('name', grids)
def test_grid(name):
    sweep, trials = swept('grid', grids[name]), []
    runs = grid_search_next_runs([], {'method': 'grid', 'parameters': grids[name]}, n=3000)
    assert runs[-1] is None  # there are no more
    wandb = sorted(text({k: v['value'] for k, v in r.config.items()}) for r in runs[:-1])
    assert sorted(map(text, Grid(sweep))) == wandb and size(sweep) == len(wandb)
    asked = study(sweep)
    trials = [suggest(asked.ask(), sweep) for _ in range(len(wandb))]
    assert [text(t) for t in trials] == [text(p) for p in Grid(sweep)]
    # and so it is stored
    assert [text(suggest(t, sweep)) for t in asked.trials] == [text(p) for p in Grid(sweep)]
    if name != 'constants':
        with pytest.raises(IndexError, match='must be less than the number of points'):
            suggest(asked.ask(), sweep)


def test_sizes():
    of = {'a': {'min': 1, 'max': 10}}
    assert [
        size(swept(m, of, run_cap=cap)) for m in ('grid', 'random') for cap in (None, 3, 30)
    ] == [10, 3, 10, None, 3, 30]
    with pytest.raises(ValueError, match=r'fewer than 2\*\*53 values for the method grid'):
        size(swept('grid', {'a': {'min': 0, 'max': 2**60}}))
    with pytest.raises(ValueError, match=r'fewer than 2\*\*53 values for the method grid'):
        size(swept('grid', {'a': d('q_uniform', min=0, max=1, q=1e-300)}))


# Searches


def test_import_is_light():
    code = (
        'import sys, dlframe.samplers; print(*{"torch", "scipy", "sweeps", "matplotlib"} & '
        '{*sys.modules})'
    )
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout
        == '\n'
    )


space = {
    'x': {'min': -1.0, 'max': 1.0},
    'y': d('log_uniform_values', min=0.01, max=100.0),
    'widths': {'values': [[64], [128, 64]]},
    'n': {'min': 1, 'max': 2**31},
}


def bowl(v):
    return (v['x'] - 0.3) ** 2 + math.log10(v['y']) ** 2 + (len(v['widths']) - 1)


@pytest.mark.parametrize('kind', ['tpe', 'gp'])
def test_a_model_helps(kind):
    def best(method, token):
        sweep = swept(method, space)
        trials = study(sweep, token, kind)
        trials.optimize(lambda t: bowl(suggest(t, sweep)), n_trials=30 if kind == 'tpe' else 16)
        return trials.best_value, [t.value for t in trials.trials]

    runs = {
        method: [best(method, token) for token in ('abc' if kind == 'tpe' else 'a')]
        for method in ('random', 'bayes')
    }
    for (_, a), (_, b) in zip(*runs.values()):
        assert a[:10] == b[:10] and a[10:] != b[10:]
    best_of = {
        method: sorted(r[0] for r in found)[len(found) // 2] for method, found in runs.items()
    }
    assert best_of['bayes'] < 0.5 * best_of['random']
    assert best('bayes', 'a') == runs['bayes'][0]  # what was found decides, and the token


def test_agents_and_restarts(tmp_path):
    """One agent, or three that ask in turns and forget all they knew after each trial: the same
    trials
    """
    sweep = swept('random', {names[n]: s for n, s in specs.items()})

    def ask(agents, file, n=6):
        def agent():
            return optuna.create_study(
                study_name='s',
                storage=optuna.storages.JournalStorage(
                    optuna.storages.journal.JournalFileBackend(str(tmp_path / file))
                ),
                sampler=sampler(sweep, 'x7k2'),
                load_if_exists=True,
            )

        one = [agent() for _ in range(agents)]
        return [
            suggest((one[i % agents] if agents == 1 else agent()).ask(), sweep) for i in range(n)
        ], agent

    alone, agent = ask(1, 'alone.log')
    assert alone == ask(3, 'three.log')[0]
    # taken over
    assert [suggest(optuna.Trial(agent(), t._trial_id), sweep) for t in agent().trials] == alone
    other = study(sweep, 'other')
    assert not any(suggest(other.ask(), sweep) == a for a in alone)


# Who is stopped


def scenario(dice):
    "Histories, some with holes, of trials in all states; and a rule"
    goal, n = dice.choice(['minimize', 'maximize']), dice.randint(3, 20)
    hole = lambda: dice.choice([math.nan, math.inf, -math.inf, None, 'NaN', True])
    curve = lambda: [
        hole() if dice.random() < holes else round(level + dice.gauss(0, 1) * noise, digits)
        for level, noise in [(dice.gauss(0, 1), dice.choice([0.1, 1, 3]))]
        for _ in range(dice.choice([0, 3, *(dice.randint(1, 60) for _ in range(4))]))
    ]
    # with one digit, many are equal
    holes, digits = dice.choice([0, 0, 0.2]), dice.choice([1, 6])
    rule = {'type': 'hyperband', 'strict': dice.random() < 0.5}
    if dice.random() < 0.8:
        rule['eta'] = dice.choice([2, 3, 4, 1.5, 2.5, 7])
    rule |= (
        {'min_iter': dice.randint(1, 12)}
        if dice.random() < 0.5
        else {'max_iter': dice.randint(7, 90), 's': dice.randint(1, 5)}
    )
    return goal, [curve() for _ in range(n)], [dice.random() < 0.5 for _ in range(n)], rule


def wandb_stops(goal, histories, running, rule, i=None):
    """Which runs does W&B stop? Version 0.3.0 is asked as it is. Version 0.2.0 looks at the value
    after the bracket and knows nothing of `strict`. Later versions look at the value at the
    bracket: this one does, too, of histories with one value more in front, the worst there is.
    Strict, of run `i`, is to compare just that value: so no other is left in its history.
    """
    if knows_strict:
        runs = [
            SweepRun(
                name=str(j),
                state=RunState.running if r else RunState.finished,
                history=[{'loss': v} for v in h],
            )
            for j, (h, r) in enumerate(zip(histories, running))
        ]
        config = {'metric': {'name': 'loss', 'goal': goal}, 'early_terminate': dict(rule)}
        return {int(r.name) for r in hyperband_stop_runs(runs, config)}
    worst = 1e300 if goal == 'minimize' else -1e300
    seen = [[worst, *h] for h in histories]
    if i is not None:
        own = [j for j, v in enumerate(seen[i]) if isinstance(v, float) and math.isfinite(v)]
        last = [b for b in bands(rule) if b < len(own)][-1:]
        seen[i] = [
            v if j not in own or j in [own[b] for b in last] else worst
            for j, v in enumerate(seen[i])
        ]
    runs = [
        SweepRun(
            name=str(j),
            state=RunState.running if r else RunState.finished,
            sampledHistory=[{'loss': v} for v in h],
        )
        for j, (h, r) in enumerate(zip(seen, running))
    ]
    config = {
        'method': 'random',
        'metric': {'name': 'loss', 'goal': goal},
        'parameters': {'a': {'value': 1}},
        'early_terminate': {k: v for k, v in rule.items() if k != 'strict'},
    }
    return {int(r.name) for r in hyperband_stop_runs(runs, config)}


def test_stops(record_property):
    dice, decisions = random.Random(0), Counter()
    while decisions.total() < 2000:
        goal, histories, running, rule = scenario(dice)
        one_by_one = rule['strict'] and not knows_strict
        those = [i for i, r in enumerate(running) if r][: 2 if one_by_one else None]
        stopped = (
            {i for i in those if i in wandb_stops(goal, histories, running, rule, i)}
            if one_by_one
            else wandb_stops(goal, histories, running, rule)
        )
        for i in those:
            assert stop(histories[i], histories, rule, goal) == (i in stopped), (
                i,
                goal,
                histories,
                rule,
            )
            decisions[
                f'{"strict" if rule["strict"] else "loose"}, '
                f'{"stopped" if i in stopped else "goes on"}'
            ] += 1
    record_property('cases', dict(decisions))
    assert len(decisions) == 4 and min(decisions.values()) > 100


def test_values():
    "The best of a run, as W&B's search takes it"
    dice, n = random.Random(0), 0
    for _ in range(300):
        goal, histories, *_ = scenario(dice)
        for h in histories[:3]:
            try:
                wandb = SweepRun(sampledHistory=[{'loss': v} for v in h]).metric_extremum(
                    'loss', goal
                )
            except ValueError:
                wandb = None
            assert value(h, goal, 'best') == wandb
            n += wandb is not None
    assert n > 300
