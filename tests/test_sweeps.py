"The sweep files name parameters that exist, with values that can be read; the scripts of a cluster start what they say"
import json, os, re, shutil, subprocess
from pathlib import Path

import pytest
import yaml

from dlframe.params import read_value
from dlframe.specs import parse
from dlframe.sweeps import declared, read_sweep

root = Path(__file__).parent.parent
files = sorted((root/'sweeps').glob('*.yaml'))
each_file = pytest.mark.parametrize('file', files, ids=lambda f: f.name)

def read(file): return read_sweep(file, root)

def test_there_are_sweeps():
    assert {f.stem for f in files} >= {'vae_beta', 'vib_beta', 'seeds', 'bayes'}
    assert {read(f).method for f in files} >= {'grid', 'bayes'}

@each_file
def test_it_says_what_it_asks(file):
    lines = file.read_text(encoding='utf-8').splitlines()
    assert re.fullmatch(r'# [A-Z].+\?', lines[0]) and f'wandb sweep sweeps/{file.name},' in lines[1]
    assert len(lines) <= 25

@each_file
def test_numbers_are_numbers_to_wandb(file):
    "YAML 1.1, which W&B reads, finds `1e-3` to be a text"
    text = file.read_text(encoding='utf-8')
    assert yaml.safe_load(text) == parse(text)

@each_file
def test_values_arrive_as_they_were(file):
    "Every value, as W&B hands it on (JSON, in which papermill finds 1e-05 to be a text), is read as what it was"
    sweep = read(file)
    kinds = declared(root/sweep.program)
    for name, chosen in sweep.parameters.items():
        for value in chosen.examples(): assert read_value(name, yaml.safe_load(json.dumps(value)), kinds[name]) == value

@each_file
def test_method(file):
    "A search has an end, a grid has no ranges, and what is searched for is logged by the page"
    sweep = read(file)
    ranges = any('min' in c.options for c in sweep.parameters.values())
    assert ranges == (sweep.method != 'grid') and (sweep.method == 'grid' or sweep.run_cap)
    assert sweep.metric['name'] in ('valid/loss', 'valid/elbo', 'valid/accuracy')

@pytest.mark.parametrize('was, becomes, said', [
    ('  lr:', '  lrr:', "`parameters` must be one of …, got 'lrr'; did you mean 'lr'?"), ('min: 1.0e-4', 'min: 0', '`parameters.lr.min` must be larger than 0, got 0'), ('min: 4, max: 64', 'min: 64, max: 4', '`parameters.z_dim.min` must be less than max, 4, got 64'),
    ('int_uniform, min: 4', 'uniform, min: 4', '`parameters.z_dim` must be of type int, got …'), ('[32, 64, 128, 256]', '[32, many]', "`parameters.batch_size.values[1]` must be of type int, got 'many'"), ('method: bayes', 'method: bayse', "`method` must be one of …; did you mean 'bayes'?"),
    ('run_cap: 40', 'run_cup: 40', "`sweep file` must be one of …; did you mean 'run_cap'?"), ('nbs/exp', 'nbs/../nbs/exp', "`program` must be inside the folder where agents start, got 'nbs/../nbs/…"),
    ('nbs/exp', f'{root}/nbs/exp', "`program` must be inside the folder where agents start, got '/…"),
    ('log_uniform_values, min: 1.0e-4, max: 1.0e-2', 'q_uniform, min: 0.0, max: 1.0e+308, q: 1.0e-300', '`parameters.lr` must hold numbers that a float can hold, got …'),
    ('train.ipynb', 'trian.ipynb', "`program` must be a notebook in …, got 'nbs/experiments/trian.ipynb', which is not there"), ('${args_json_file}', '${args_json_fil}', "`command[6]` must be one of …; did you mean 'args_json_file'?"),
    ('log_uniform_values', 'log_unifrom_values', "`parameters.lr.distribution` must be one of …; did you mean 'log_uniform_values'?"), ('goal: maximize', 'goal: maximise', "`metric.goal` must be one of …; did you mean 'maximize'?")], ids=lambda x: x[:20])
def test_a_mistake_is_found_before_the_first_trial(was, becomes, said, tmp_path):
    text = (root/'sweeps/bayes.yaml').read_text(encoding='utf-8')
    assert text.count(was) == 1
    file = tmp_path/'bayes.yaml'
    file.write_text(text.replace(was, becomes), encoding='utf-8')
    with pytest.raises((ValueError, KeyError)) as e: read(file)
    assert re.fullmatch(re.escape(f'{file}: {said}').replace('…', '.*'), str(e.value))

@each_file
def test_command(file):
    "Each trial gets a notebook of its own: W&B expands `${envvar:WANDB_RUN_ID}` before there is one, so the shell must"
    command = read(file).command
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
