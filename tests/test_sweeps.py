"""The sweep files name parameters that exist, with values that can be read, are taken by W&B too,
and log what they look for
"""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from experiment import environment

from dlframe.parameter_checks import declared, read_value
from dlframe.specs import parse
from dlframe.sweeps import Choice, check_executable, read_sweep
from dlframe.validation import Refusal

root = Path(__file__).parent.parent
files = sorted((root / 'sweeps').glob('*.yaml'))
each_file = pytest.mark.parametrize('file', files, ids=lambda f: f.name)


def read(file):
    return read_sweep(file, root)


def test_there_are_sweeps():
    assert {f.stem for f in files} >= {
        'grid',
        'random',
        'bayes',
        'hyperband',
        'nested',
        'vae_beta',
        'vib_beta',
        'prior_bound',
        'seeds',
    }
    assert {read(f).method for f in files} == {'grid', 'random', 'bayes'}
    assert any(read(f).early_terminate for f in files) and any(
        not isinstance(c, Choice) for f in files for c in read(f).parameters.values()
    )


@each_file
def test_it_says_what_it_asks(file):
    lines = file.read_text(encoding='utf-8').splitlines()
    assert re.fullmatch(r'# [A-Z].+\?', lines[0])
    assert f'wandb sweep sweeps/{file.name},' in lines[1]
    assert f'dlframe-agent sweeps/{file.name} ' in lines[1]
    assert len(lines) <= 25


@each_file
def test_numbers_are_numbers_to_wandb(file):
    "YAML 1.1, which W&B reads, finds `1e-3` to be a text"
    text = file.read_text(encoding='utf-8')
    assert yaml.safe_load(text) == parse(text)


@each_file
def test_wandb_takes_it(file):
    "By the schema of W&B's own package, which is older than two of the keys"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it wants another numpy, for its own search
        from sweeps import SweepConfig
        from sweeps import schema_violations_from_proposed_config as violations
    given = yaml.safe_load(file.read_text(encoding='utf-8'))
    new = {given.pop('run_cap', None), given.get('early_terminate', {}).pop('strict', None)}
    assert violations(given) == [] and SweepConfig(given)['method'] == given['method']
    assert violations({**given, 'method': 'bayse'}) != []
    # its default is one thing in the documentation of W&B and another in its code
    assert ('early_terminate' in given) == (True in new)


@each_file
def test_values_arrive_as_they_were(file):
    """Every value, as W&B hands it on (JSON, in which papermill finds 1e-05 to be a text), is read
    as what it was
    """
    sweep = read(file)
    kinds = declared(root / sweep.program)
    for name, chosen in sweep.parameters.items():
        for value in values(chosen):
            assert read_value(
                name, yaml.safe_load(json.dumps(value)), kinds[name]
            ) == value or isinstance(value, dict)


def values(chosen, last=False):
    """Of a parameter, the smallest and the largest among them; of nested ones, the first or the
    last of each
    """
    return (
        chosen.examples()
        if isinstance(chosen, Choice)
        else [{name: values(c)[-last] for name, c in chosen.items()} for last in (0, 1)]
    )


def period(sweep, name):
    "A number of epochs"
    amount, unit = sweep.parameters[name].options['value'].split()
    assert unit.rstrip('s') == 'epoch'
    return int(amount)


@each_file
def test_method(file):
    """A search has an end, a grid has no ranges, nothing that is the same in all trials of W&B is a
    choice, and each trial is looked at some times
    """
    sweep = read(file)
    ranges = any('min' in str(c) for c in sweep.parameters.values())
    assert ranges == (sweep.method != 'grid') and (sweep.method == 'grid') == (
        sweep.run_cap is None
    )
    assert sweep.parameters['logger'].options == {'value': 'wandb'} and sweep.about == {
        'project': 'dlframe'
    }
    looks = 1 + period(sweep, 'train_for') // period(sweep, 'evaluate_every')
    assert period(sweep, 'train_for') % period(sweep, 'evaluate_every') == 0 and looks >= 6
    if stop := sweep.early_terminate:
        assert stop['min_iter'] > 1 and stop['min_iter'] * stop['eta'] < looks, (
            'a trial is never stopped, or before it began'
        )


LOGS = """
import json, sys, pandas as pd
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
shell, root, found = InteractiveShell.instance(), Path(sys.argv[1]), {}
for name, (program, changes) in json.load(sys.stdin).items():
    page = json.loads((root/program).read_text(encoding='utf-8'))
    cells = [''.join(c['source']) for c in page['cells'] if c['cell_type'] == 'code']
    fits = next(i for i, c in enumerate(cells) if '.fit()' in c)
    shell.reset(new_session=False)
    given = ['# Parameters', *(f'{k} = {v!r}' for k, v in changes.items())]
    for cell in [cells[0], '\\n'.join(given), *cells[1:fits + 1]]:
        shell.run_cell(cell, store_history=True).raise_error()
    rows = pd.read_csv(shell.user_ns['run'].folder/'metrics.csv')
    found[name] = rows['name'].value_counts().to_dict()
print(json.dumps(found))
"""


def test_trials_log_the_metric(tmp_path):
    """The first and the last trial of each file, made small: its metric is logged at every look,
    the one before training included
    """
    small = {
        'dataset': 'digits',
        'train_for': '2 steps',
        'evaluate_every': '1 step',
        'logger': 'files',
    }
    sweeps = {f.stem: read(f) for f in files}
    trials = {
        f'{stem}-{last}': (
            str(s.program),
            {**{k: values(c)[-last] for k, c in s.parameters.items()}, **small},
        )
        for stem, s in sweeps.items()
        for last in (0, 1)
    }
    r = subprocess.run(
        [sys.executable, '-c', LOGS, root],
        input=json.dumps(trials),
        env=environment(tmp_path, RUNS_ROOT=tmp_path / 'runs'),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stdout + r.stderr
    found = json.loads(r.stdout.splitlines()[-1])
    assert {
        name: logged.get(sweeps[name[:-2]].metric['name']) for name, logged in found.items()
    } == dict.fromkeys(trials, 3)


@pytest.mark.parametrize(
    'was, becomes, said',
    [
        ('  lr:', '  lrr:', "`parameters` must be one of …, got 'lrr'; did you mean 'lr'?"),
        ('min: 1.0e-4', 'min: 0', '`parameters.lr.min` must be larger than 0, got 0'),
        (
            'min: 4, max: 64',
            'min: 64, max: 4',
            '`parameters.z_dim.min` must be less than max, 4, got 64',
        ),
        ('int_uniform, min: 4', 'uniform, min: 4', '`parameters.z_dim` must be of type int, got …'),
        (
            '[32, 64, 128, 256]',
            '[32, many]',
            "`parameters.batch_size.values[1]` must be of type int, got 'many'",
        ),
        ('method: bayes', 'method: bayse', "`method` must be one of …; did you mean 'bayes'?"),
        (
            '  lr: {distribution',
            '  name: {value: first}\n  lr: {distribution',
            "`parameters.name` must not be given: a trial is called by its id, …, got {'value': "
            "'first'}",
        ),
        (
            '  lr: {distribution',
            '  resume: {value: runs/first}\n  lr: {distribution',
            '`parameters.resume` must not be given: …',
        ),
        (
            '  lr: {distribution',
            '  groups.encoder.lr: {distribution',
            "`parameters` must have names of parameters, got 'groups.encoder.lr': what is inside "
            'a parameter has `parameters` of its own',
        ),
        ('run_cap: 40', 'run_cup: 40', "`sweep file` must be one of …; did you mean 'run_cap'?"),
        (
            'nbs/exp',
            'nbs/../nbs/exp',
            "`program` must be inside the folder where agents start, got 'nbs/../nbs/…",
        ),
        (
            'nbs/exp',
            f'{root}/nbs/exp',
            "`program` must be inside the folder where agents start, got '/…",
        ),
        (
            'log_uniform_values, min: 1.0e-4, max: 1.0e-2',
            'q_uniform, min: 0.0, max: 1.0e+308, q: 1.0e-300',
            '`parameters.lr` must hold numbers that a float can hold, got …',
        ),
        (
            'train.ipynb',
            'trian.ipynb',
            "`program` must be a notebook in …, got 'nbs/experiments/trian.ipynb', which is not "
            'there',
        ),
        (
            '${args_json_file}',
            '${args_json_fil}',
            "`command[6]` must be one of …; did you mean 'args_json_file'?",
        ),
        (
            'log_uniform_values',
            'log_unifrom_values',
            "`parameters.lr.distribution` must be one of …; did you mean 'log_uniform_values'?",
        ),
        (
            'goal: maximize',
            'goal: maximise',
            "`metric.goal` must be one of …; did you mean 'maximize'?",
        ),
    ],
    ids=lambda x: x[:20],
)
def test_a_mistake_is_found_before_the_first_trial(was, becomes, said, tmp_path):
    text = (root / 'sweeps/bayes.yaml').read_text(encoding='utf-8')
    assert text.count(was) == 1
    file = tmp_path / 'bayes.yaml'
    file.write_text(text, encoding='utf-8')
    assert read(file).method == 'bayes'  # without the mistake
    file.write_text(text.replace(was, becomes), encoding='utf-8')
    with pytest.raises(Refusal) as e:
        read(file)
    assert re.fullmatch(re.escape(f'{file}: {said}').replace('…', '.*'), str(e.value))


@each_file
def test_command(file):
    """Each trial gets a notebook of its own, beside its folder: W&B expands
    `${envvar:WANDB_RUN_ID}` before there is one, so the shell must
    """
    command = read(file).command
    check_executable(command, root)
    assert command[:3] == ['${env}', 'sh', '-c']
    assert command[4:] == ['${program}', '-f', '${args_json_file}']
    assert not any('envvar' in c for c in command)


@pytest.mark.parametrize('runs', ['', 'else where'])
def test_the_shell_of_a_command(runs, tmp_path):
    "It makes the folder, hands every word on, and becomes papermill, which signals then reach"
    (tmp_path / 'papermill').write_text(
        '#!/bin/sh\necho $$\nfor w in "$@"; do echo "$w"; done\nexit 3\n'
    )
    (tmp_path / 'papermill').chmod(0o755)
    env = {
        **environment(
            tmp_path,
            WANDB_SWEEP_ID='swp',
            WANDB_RUN_ID='x7k2-0003',
            **({'RUNS_ROOT': tmp_path / runs} if runs else {}),
        )
    }
    env['PATH'] = f'{tmp_path}:{env["PATH"]}'
    shell = read(files[0]).command[1:4]
    process = subprocess.Popen(
        [*shell, 'a page.ipynb', '-f', 'it is.json'],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = process.communicate()[0].splitlines()
    folder = f'{tmp_path}/{runs}/swp' if runs else 'runs/swp'
    assert said == [
        str(process.pid),
        '--engine',
        'dlframe',
        'a page.ipynb',
        f'{folder}/x7k2-0003.ipynb',
        '-f',
        'it is.json',
    ]
    assert process.returncode == 3
    assert (tmp_path / folder).is_dir() and len({read(f).command[3] for f in files}) == 1
