"The sweep files name parameters that exist, with values that can be read; the scripts of a cluster start what they say"
import json, os, re, shutil, subprocess
from pathlib import Path

import pytest
import yaml

from dlframe.params import declaration, read_value

root = Path(__file__).parent.parent
files = sorted((root/'sweeps').glob('*.yaml'))
each_file = pytest.mark.parametrize('file', files, ids=lambda f: f.name)

def declared(notebook):
    "Names and types in the notebook's parameters cell"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    source, = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    return {name: eval(kind) for name, kind in declaration(source).items()}

def read(file): return yaml.safe_load(file.read_text(encoding='utf-8'))

def test_there_are_sweeps():
    assert {f.stem for f in files} >= {'vae_beta', 'vib_beta', 'seeds', 'bayes'}
    assert {read(f)['method'] for f in files} >= {'grid', 'bayes'}

@each_file
def test_it_says_what_it_asks(file):
    lines = file.read_text(encoding='utf-8').splitlines()
    assert re.fullmatch(r'# [A-Z].+\?', lines[0]) and f'wandb sweep sweeps/{file.name},' in lines[1]
    assert len(lines) <= 25

def choices(file):
    "Parameters with the values that a sweep may give them: all of them, or the ends of a range"
    for name, choice in read(file)['parameters'].items():
        assert choice.keys() in ({'value'}, {'values'}, {'distribution', 'min', 'max'}), name
        yield name, choice['values'] if 'values' in choice else [choice[k] for k in ('value', 'min', 'max') if k in choice]

@each_file
def test_parameters(file):
    "Every value, as W&B hands it on (JSON, in which papermill finds 1e-05 to be a text), is of the declared type"
    kinds = declared(root/read(file)['program'])
    for name, values in choices(file):
        assert values, name
        for value in values:
            handed = yaml.safe_load(json.dumps(value))
            assert read_value(name, handed, kinds[name]) == read_value(name, value, kinds[name]) == value

@each_file
def test_ranges(file):
    for name, choice in read(file)['parameters'].items():
        if 'min' not in choice: continue
        assert choice['min'] < choice['max'] and choice['distribution'] in ('uniform', 'int_uniform', 'log_uniform_values'), name
        if choice['distribution'] == 'log_uniform_values': assert choice['min'] > 0, name

@each_file
def test_method(file):
    "A grid has no ranges, a search has an end, and what is searched for is logged by the page"
    sweep = read(file)
    ranges = any('min' in c for c in sweep['parameters'].values())
    assert sweep['method'] in ('grid', 'random', 'bayes') and ranges == (sweep['method'] != 'grid')
    assert sweep['method'] == 'grid' or sweep['run_cap'] > 0
    assert sweep['metric']['name'] in ('valid/loss', 'valid/elbo', 'valid/accuracy') and sweep['metric']['goal'] in ('minimize', 'maximize')

@each_file
def test_command(file):
    "Each trial gets a notebook of its own: W&B expands `${envvar:WANDB_RUN_ID}` before there is one, so the shell must"
    command = read(file)['command']
    assert 'exec papermill --engine dlframe "$0" "runs/$WANDB_SWEEP_ID/$WANDB_RUN_ID.ipynb"' in command[3] and not any('envvar' in c for c in command)
    assert command[-2:] == ['-f', '${args_json_file}']

# What a cluster would do

scripts = sorted((root/'scripts').glob('slurm_*.sh'))
each_script = pytest.mark.parametrize('script', scripts, ids=lambda f: f.name)

@each_script
def test_syntax(script):
    r = subprocess.run(['bash', '-n', script], capture_output=True, text=True)
    assert (r.returncode, r.stderr) == (0, '')
    assert os.access(script, os.X_OK)

@each_script
def test_directives(script):
    "Slurm reads options up to the first command; what differs between clusters is marked"
    lines = script.read_text().splitlines()
    end = lines.index('set -eu')
    options = [l for l in lines[:end] if l.startswith('#SBATCH')]
    assert all(re.fullmatch(r'#SBATCH --[a-z-]+(=\S+)?', l) for l in options) and len(options) >= 6
    assert not any(l.startswith('#SBATCH') for l in lines[end:])
    for changed in 'partition', 'gres', 'time': assert '# CHANGE: ' in lines[lines.index(next(l for l in lines if l.startswith(f'#SBATCH --{changed}='))) - 1]

@pytest.fixture
def cluster(tmp_path):
    "Run a script as Slurm would: what it started, word by word, and what it complained of"
    (tmp_path/'bin').mkdir()
    stubs = {'sbatch': 'SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=4 SLURM_JOB_ID=7 exec bash "$@"', 'srun': 'exec "$@"',
             'wandb': 'for w in wandb "$@"; do echo "$w"; done', 'papermill': 'for w in papermill "$@"; do echo "$w"; done; echo $OMP_NUM_THREADS'}
    for name, text in stubs.items():
        (tmp_path/'bin'/name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path/'bin'/name).chmod(0o755)
    work = tmp_path/'a project'
    shutil.copytree(root/'scripts', work/'scripts')
    def sbatch(*words, **more):
        env = {**os.environ, 'PATH': f"{tmp_path/'bin'}:{os.environ['PATH']}", 'RUNS_ROOT': '', **more}
        r = subprocess.run(['sbatch', *words], cwd=work, env=env, capture_output=True, text=True)
        return r.stdout.splitlines(), r.stderr
    sbatch.runs = work/'runs'
    return sbatch

def test_agents_start(cluster):
    assert cluster('scripts/slurm_agents.sh', 'us/dlframe/abc') == (['wandb', 'agent', 'us/dlframe/abc'], '')
    assert 'usage: sbatch scripts/slurm_agents.sh entity/project/sweep_id' in cluster('scripts/slurm_agents.sh')[1]

def test_a_run_starts_and_goes_on(cluster):
    page, more, runs = 'nbs/experiments/train.ipynb', ['-p', 'train_for', '20 epochs'], cluster.runs
    def started(**env):
        words, said = cluster('scripts/slurm_run.sh', 'first', *more, **env)
        assert said == '' and words[:4] == ['papermill', '--engine', 'dlframe', page] and words[-1] == '4'
        return words[4:-1]
    assert started() == [f'{runs}/first-7.0.ipynb', *more, '-r', 'name', 'first']
    (runs/'first').mkdir(parents=True)
    assert started(SLURM_RESTART_COUNT='1') == [f'{runs}/first-7.1.ipynb', *more, '-r', 'name', 'first'] # killed before there was a run; the page takes the folder
    (runs/'first/manifest.json').touch()
    assert started(SLURM_RESTART_COUNT='1') == [f'{runs}/first-7.1.ipynb', *more, '-r', 'resume', f'{runs}/first', '-r', 'name', 'first']
    assert 'usage: sbatch scripts/slurm_run.sh NAME' in cluster('scripts/slurm_run.sh')[1]
