"Several processes train as one does; number formats, compiled models and device profiles as they are in real runs"
import itertools, json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch
import together
from experiment import environment, numbers, once
from tree import ROOT

from dlframe.loading import load
from dlframe.run import Run

def bounded(*command, env, cwd, seconds=240):
    "Run a command that starts others; none of them is left when it has ended, or after so many seconds"
    process = subprocess.Popen([str(c) for c in command], cwd=cwd, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try: out, err = process.communicate(timeout=seconds)
    finally:
        left = members(process.pid)
        for pid in left: os.kill(pid, signal.SIGKILL)
    assert not left, f'{left} were left by {command}'
    return subprocess.CompletedProcess(command, process.returncode, out, err)

def members(group, seconds=10):
    "Processes of a group that live on after it had some seconds to end"
    end = time.monotonic() + seconds
    while True:
        alive = [int(p.name) for p in Path('/proc').iterdir() if p.name.isdigit() and group_of(p) == group]
        if not alive or time.monotonic() > end: return alive
        time.sleep(.1)

def group_of(process):
    try: state, _, number = (process/'stat').read_text().rpartition(')')[2].split()[:3]
    except (OSError, ValueError): return None
    return None if state == 'Z' else int(number)

def good(r):
    assert r.returncode == 0, r.stdout + r.stderr
    return r

@pytest.fixture(scope='session')
def home(tmp_path_factory): return once(tmp_path_factory, 'home')

@pytest.fixture(scope='session')
def two(tmp_path_factory, home):
    "What two processes left, which a script started"
    def make(to):
        env = environment(home, RUNS_ROOT=to, PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT}/tests')
        r = good(bounded(sys.executable, ROOT/'tests/together.py', 2, env=env, cwd=to))
        (to/'said').write_text(r.stdout + r.stderr)
    return once(tmp_path_factory, 'two', make)

@pytest.fixture(scope='session')
def one(tmp_path_factory):
    "What one process left"
    def make(to):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('RUNS_ROOT', str(to))
            together.train(1)
    return once(tmp_path_factory, 'one', make)

def model(folder): return load(folder, packages=['together']).model

def test_without_noise_two_processes_end_with_the_weights_of_one(one, two):
    for a, b in zip(model(one/'classifier').parameters(), model(two/'classifier').parameters()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

def test_rows_of_metrics_are_the_same(one, two):
    "Each once, with the same counters; the loss of training, too, is that of all rows"
    first, second = numbers(one/'classifier'), numbers(two/'classifier')
    named = [{k: v for k, v in r.items() if k != 'value'} for r in first]
    assert named == [{k: v for k, v in r.items() if k != 'value'} for r in second]
    assert [float(r['value']) for r in second] == pytest.approx([float(r['value']) for r in first], rel=1e-5)
    assert named[-1].items() >= {'name': 'valid/loss', 'steps': '21', 'epochs': '3', 'samples': '3591'}.items()
    assert float(first[-1]['value']) < .5*float(first[0]['value'])

def test_noise_differs_between_processes_and_seeds_do_not_depend_on_how_many(two, one):
    drawn = [(root/'whole'/f'noise-{rank}').read_text().split() for root, rank in ((two, 0), (two, 1), (one, 0))]
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
    assert drawn[0][1] == drawn[2][1]  # of Python's generator, which nothing has used

def state(folder): return torch.load(folder/'checkpoints/last.ckpt', weights_only=True)

@pytest.mark.parametrize('processes', ['one', 'two'])
def test_a_resumed_run_is_the_run_that_was_not_stopped(processes, request):
    whole, half = (request.getfixturevalue(processes)/name for name in ('whole', 'half'))
    assert [r for r in numbers(half) if r['steps'] != '12'] == numbers(whole)  # the shorter run's end was at step 12
    a, b = state(whole), state(half)
    for k in a['state_dict']: assert torch.equal(a['state_dict'][k], b['state_dict'][k]), k
    assert [r['steps'] for r in json.loads((half/'manifest.json').read_text())['resumed']] == [12]
    for noise in whole.glob('noise-*'): assert noise.read_text() == (half/noise.name).read_text()

def test_what_has_noise_learns_as_well(one, two):
    losses = [[float(r['value']) for r in numbers(root/'whole') if r['name'] == 'valid/loss'] for root in (one, two)]
    assert losses[0][0] == pytest.approx(losses[1][0]) and losses[0][-1] == pytest.approx(losses[1][-1], rel=.05)
    assert losses[1][-1] < .8*losses[1][0]

def test_players_train(two):
    saved = state(two/'gan')['counters']
    assert (saved['steps'], saved['discriminator_steps'], saved['generator_steps']) == (12, 8, 4)
    assert {r['name'] for r in numbers(two/'gan')} == {'train/discriminator.loss', 'train/discriminator.data', 'train/discriminator.made', 'train/generator.loss'}

def test_the_clock_of_one_ends_both(two): assert .3 <= state(two/'seconds')['counters']['seconds'] < 60

def test_one_of_them_speaks(two):
    said = (two/'said').read_text()
    assert said.count('100% ') == 6 and said.count(f"folder {two/'half'}") == 2  # which the script says in both

@pytest.fixture
def command(tmp_path, home):
    "`dlframe-run`, as it is installed, or as a module; classes of `together` are trusted"
    script = tmp_path/'dlframe-run'
    script.write_text('import sys\nfrom dlframe.run import main\nsys.exit(main())\n')
    env = environment(home, RUNS_ROOT=tmp_path/'runs', PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT}/tests')
    how = {'script': [script], 'module': ['-m', 'dlframe.run']}
    return lambda name, *words: bounded(sys.executable, *how[name], '--package', 'together', *words, env=env, cwd=tmp_path)

def failing(rank): return f'run.callbacks=[{{cls: together.Fail, step: 12, rank: {rank}}}]'

def test_a_failure_of_the_second_ends_both_and_the_run_can_go_on(two, command, tmp_path):
    r = command('script', two/'whole/manifest.json', 'run.name=broken', failing(1))
    assert r.returncode and 'the cable' in r.stderr
    broken = tmp_path/'runs/broken'
    assert state(broken)['counters']['steps'] == 10 and not (broken/'checkpoints/model.safetensors').exists()
    r = good(command('module', '--resume', broken))
    assert r.stdout.count(f'run folder: {broken}') == 1 and r.stdout.count('100% ') == 1
    assert numbers(broken) == numbers(two/'whole')
    for a, b in zip(model(broken).parameters(), model(two/'whole').parameters()): assert torch.equal(a, b)

def test_a_failure_of_the_first_ends_both(two, command, tmp_path):
    r = command('module', two/'whole/manifest.json', 'run.name=broken', failing(0))
    assert r.returncode == 1 and r.stderr.rstrip().endswith('dlframe-run: the cable')
    assert state(tmp_path/'runs/broken')['counters']['steps'] == 10

def test_what_is_in_no_file_cannot_be_started_again(two, home, tmp_path):
    words = [two/'whole/manifest.json', '--package', 'together']
    r = bounded(sys.executable, '-c', 'from dlframe.run import main; main()', *words, env=environment(home, RUNS_ROOT=tmp_path/'runs', PYTHONPATH=f'{ROOT}{os.pathsep}{ROOT}/tests'), cwd=tmp_path)
    assert r.returncode == 1 and '`devices` must be 1 in a program that is in no file' in r.stderr and 'Traceback' not in r.stderr
    assert not (tmp_path/'runs').exists()
