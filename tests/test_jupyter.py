"What a person in front of a notebook sees: errors, curves, the stop button"

import json
import re

import nbformat
import pytest
from experiment import Jupyter, code, environment, numbers, papermill, weights

from dlframe.entries import Figure
from dlframe.loading import load
from dlframe.specs import build, read

BEGIN = [
    'beta: float = 1. # Weight of the rate',
    'from dlframe.notebooks import parameters\nsettings = parameters()',
    """
import os, threading, time
from pathlib import Path
from pytorch_lightning import seed_everything
import torch
from torch import nn
from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.entries import Scalar
from dlframe.evaluation import Evaluator, Terms
from dlframe.image_sets import images
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.vae import VAE
""",
    """
def pressed():
    "How often the button has been pressed"
    return len(Path('pressed').read_text()) if Path('pressed').exists() else 0

class Slow(Evaluator):
    "The evaluation of that number goes on until the button was pressed, `most` times"
    def __init__(self, number, most=1):
        super().__init__()
        self.number, self.most, self.n = number, most, 0
    label = 'slow'
    def check(self, optimization): pass
    def __call__(self, optimization):
        self.n += 1
        print(f'evaluation {self.n}', flush=True)
        while self.n == self.number and pressed() < self.most: time.sleep(.01)
        print('evaluated', flush=True)
        return Scalar(1.)

def new_run(name, train_for='300 steps', evaluations=(), body=None, **options):
    seed_everything(0, verbose=False)
    q = body or encoder('mlp', (1, 8, 8), 3, [16])
    p = decoder('mlp', 3, (1, 8, 8), [16])
    vae = VAE(q, p, prior('standard_normal', 3), settings['beta'])
    looks = [Evaluate(e, every) for e, every in evaluations]
    optimization = Optimization(vae, images('digits'))
    return Run(optimization, train_for, looks, name, log_every='10 steps', **options)
""",
]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def kernel(tmp_path_factory, runs):
    home = tmp_path_factory.mktemp('home')
    with Jupyter(home, environment(home, RUNS_ROOT=runs), home / 'kernel.json') as kernel:
        kernel.home = home
        assert kernel.run(BEGIN)[0] == ''
        yield kernel


def shown(kernel, source):
    "Lines of the error of a cell, as Jupyter shows them"
    kernel.cell(source)
    (text,) = [
        '\n'.join(m['content']['traceback']) for m in kernel.heard if m['msg_type'] == 'error'
    ]
    return re.sub(r'\x1b\[[0-9;]*m', '', text).splitlines()


# Errors


@pytest.mark.parametrize(
    'source, said',
    [
        ("new_run('x', '5 epocs')", 'UnknownName: `train_for` must be one of'),
        ("new_run('x', seed=-1)", 'InvalidValue: `seed` must be at least 0, got -1'),
        ("prior('standard_normal', 2.5)", 'InvalidType: `'),
        ("images('digits')['vaild']", "did you mean 'valid'?"),
    ],
)
def test_a_refusal_is_a_few_lines(kernel, source, said):
    lines = shown(kernel, source)
    assert len(lines) <= 12
    assert said in lines[-1]
    assert lines[0].startswith('Cell In[')
    assert lines[1] == f'    {source}'
    assert sum('dlframe/' in line for line in lines) == 1


WRONG = """
class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.event_shape = encoder('mlp', (1, 8, 8), 3, [16]), (3,)
    def forward(self, x): return self.net(x[..., :7])
run = new_run('misfit', body=Body())
run.fit()
"""


def test_a_shape_mismatch_is_on_one_screen(kernel):
    lines = shown(kernel, WRONG)
    assert len(lines) <= 25
    assert 'must fit the data' in lines[-1]
    assert 'def forward(self, x): return self.net(x[..., :7])' in '\n'.join(lines)


def test_all_of_it_can_be_asked_for(kernel):
    lines = shown(kernel, WRONG)
    everything = (
        kernel.cell('%tb')
        and [m for m in kernel.heard if m['msg_type'] == 'error'][0]['content']['traceback']
    )
    assert len('\n'.join(everything).splitlines()) > 2 * len(lines)
    assert kernel.cell(
        'import sys; print(type(sys.last_value).__name__, sys.last_traceback is not None)'
    ) == ('', 'InvalidValue True\n')
    kernel.cell("os.environ['DLFRAME_DEBUG'] = '1'")
    assert len(shown(kernel, WRONG)) > 2 * len(lines)
    kernel.cell("del os.environ['DLFRAME_DEBUG']")


def test_errors_of_other_kinds_are_shown(kernel):
    assert shown(kernel, 'a b')[-1].startswith('SyntaxError')
    assert shown(kernel, '1/0')[-1] == 'ZeroDivisionError: division by zero'
    assert shown(kernel, 'raise KeyError')[-1] == 'KeyError'
    assert shown(kernel, 'class Bad(Exception):\n    def __str__(self): return 1/0\nraise Bad()')
    assert kernel.cell('1 + 1') == ('', '')


def test_papermill_keeps_all_of_it(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(s)
        for s in (*BEGIN[:2], "from dlframe.image_sets import images\nimages('digits')['vaild']")
    ]
    cells[0].metadata['tags'] = ['parameters']
    kernelspec = {
        'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    }
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernelspec), tmp_path / 'in.ipynb'
    )
    r = papermill(tmp_path / 'in.ipynb', tmp_path / 'out.ipynb', environment(tmp_path), tmp_path)
    assert r.returncode and "did you mean 'valid'?" in r.stderr
    (error,) = [
        o
        for c in nbformat.read(tmp_path / 'out.ipynb', 4).cells
        for o in c.get('outputs', [])
        if o.output_type == 'error'
    ]
    assert error.ename == 'UnknownName' and 'Traceback (most recent call last)' in '\n'.join(
        error.traceback
    )


# Curves


def test_curves_are_drawn_in_place_and_from_elsewhere(kernel, runs, monkeypatch):
    monkeypatch.setenv('RUNS_ROOT', str(runs))
    elsewhere = []

    def look(message):
        if message['msg_type'] != 'display_data':
            return
        elsewhere.append(load(runs / 'live').plot())
        manifest = {
            k: v
            for k, v in read(runs / 'live/manifest.json').items()
            if k not in ('made', 'parameters')
        }
        elsewhere.append(build(manifest)['run'].plot())
        assert not (runs / 'live/checkpoints/model.safetensors').exists()

    assert (
        kernel.cell("live = new_run('live', '8 seconds', save_every='1 second').fit()", look)[0]
        == ''
    )
    assert [type(e) for e in elsewhere] == [Figure, Figure]
    (first,) = [m for m in kernel.heard if m['msg_type'] == 'display_data']
    updates = [m for m in kernel.heard if m['msg_type'] == 'update_display_data']
    assert 'image/png' in first['content']['data'] and 1 <= len(updates) <= 3
    assert {m['content']['transient']['display_id'] for m in updates} == {
        first['content']['transient']['display_id']
    }
    assert sum(len(json.dumps(m['content'])) for m in kernel.heard) < 300_000
    assert kernel.cell('live.plot()')[0] == ''


# The stop button


class Press:
    "Interrupt the kernel as soon as a text is said, each time"

    def __init__(self, kernel, *texts):
        self.kernel, self.texts, self.n = kernel, list(texts), 0

    def __call__(self, message):
        if self.texts and self.texts[0] in message['content'].get('text', ''):
            self.texts.pop(0)
            self.kernel.manager.interrupt_kernel()
            self.n += 1
            (self.kernel.home / 'pressed').write_text('x' * self.n)


def stop(kernel, source, *texts):
    "Error and words of a cell that is interrupted at these words"
    (kernel.home / 'pressed').write_text('')
    press = Press(kernel, *texts)
    error, said = kernel.cell(source, press)
    assert not press.texts
    return error, said


@pytest.fixture(scope='module')
def never_stopped(kernel, runs):
    assert (
        kernel.cell(
            "new_run('whole', evaluations=[(Terms('valid'), '50 steps'), (Slow(0), '50 "
            "steps')]).fit();"
        )[0]
        == ''
    )
    return runs / 'whole'


def test_a_stopped_run_goes_on(kernel, runs, never_stopped):
    error, said = stop(
        kernel,
        "stopped = new_run('stopped', evaluations=[(Terms('valid'), '50 steps'), (Slow(2), '50 "
        "steps')]).fit()",
        'evaluation 2',
    )
    assert not error
    assert f"resume with: run = Run.resume('{runs}/stopped', packages=['__main__'])" in said
    assert (runs / 'stopped/checkpoints/last.ckpt').exists() and not (
        runs / 'stopped/checkpoints/model.safetensors'
    ).exists()
    assert kernel.cell('print(repr(stopped).splitlines()[-1])')[1].endswith(', interrupted\n')
    assert int(re.search(r'stopped after step (\d+)', said)[1]) < 300
    assert kernel.cell(f"Run.resume('{runs}/stopped', packages=['__main__']);")[0] == ''
    assert numbers(runs / 'stopped') == numbers(never_stopped) and weights(
        runs / 'stopped'
    ) == weights(never_stopped)


@pytest.fixture
def page(kernel):
    "A kernel for a page, whose names are gone afterwards"
    yield kernel
    assert kernel.run(BEGIN)[0] == ''


def test_the_train_page_goes_on_with_the_run_that_is_resumed(page):
    """The line that was printed is a cell; those above it in the page say that the run is
    interrupted, and no number of theirs passes for the end
    """
    cells = code()
    fit = next(i for i, cell in enumerate(cells) if 'run.fit()' in cell)
    assert (
        page.run(
            cells[:fit], name='page', train_for='300 steps', evaluate_every='300 steps', z_dim=2
        )[0]
        == ''
    )
    error, said = stop(page, cells[fit], 'step ')
    assert not error
    stopped, line = re.search(
        r'stopped (after step \d+, at \d+ of 300 steps); resume with: (run = Run.resume.+)\n', said
    ).groups()
    error, said = page.run(cells[fit + 1 :])
    message = f'`run` must be finished, got one that stopped {stopped}; resume with: {line}'
    assert error == f'Unfinished: {message}'
    assert f'interrupted {stopped}' in said and 'validation loss' not in said
    assert page.cell(line)[0] == ''
    error, said = page.run(cells[fit + 1 :])
    assert error == '' and 'validation loss' in said and 'interrupted' not in said
    assert page.cell("print(optimization is run.optimization, optimization.counters['steps'])") == (
        '',
        'True 300\n',
    )


def test_a_stop_during_the_last_evaluation_changes_nothing(kernel, runs):
    error, said = stop(
        kernel, "new_run('end', '10 steps', [(Slow(2), None)]).fit();", 'evaluation 2'
    )
    assert not error
    assert said.count('evaluated') == 2
    assert (runs / 'end/checkpoints/model.safetensors').exists()
    error, _ = stop(kernel, "print('asleep', flush=True); time.sleep(3600)", 'asleep')
    assert error.startswith('KeyboardInterrupt')


@pytest.mark.parametrize('which', [1, 2])
def test_a_stop_during_an_evaluation_waits_for_it(kernel, runs, which):
    "The first is before the first step"
    error, said = stop(
        kernel,
        f"run = new_run('waited-{which}', evaluations=[(Slow({which}), '10 steps')]).fit()",
        f'evaluation {which}',
    )
    assert not error and said.count('evaluated') == which and 'stopped after step' in said
    assert (runs / f'waited-{which}/checkpoints/last.ckpt').exists()


TWICE = """
def again(optimization):
    while not optimization.asked_to_stop: time.sleep(.01)
    print('still there', flush=True)

class Twice(Slow):
    def __call__(self, optimization):
        if self.n == which - 1:
            print('ready', flush=True)
            threading.Thread(target=again, args=[optimization]).start()
        return super().__call__(optimization)
"""


@pytest.mark.parametrize('which', [1, 2])
def test_a_second_stop_is_an_error(kernel, runs, which):
    kernel.cell(TWICE + f'which = {which}')
    error, said = stop(
        kernel,
        f"new_run('twice-{which}', evaluations=[(Twice({which}, 3), '10 steps')]).fit()",
        'ready',
        'still there',
    )
    assert error.startswith('KeyboardInterrupt')
    error, said = stop(kernel, "print('asleep', flush=True); time.sleep(3600)", 'asleep')
    assert error.startswith('KeyboardInterrupt')
    error, said = stop(
        kernel,
        f"new_run('after-{which}', evaluations=[(Slow(2), '50 steps')]).fit();",
        'evaluation 2',
    )
    assert not error and 'stopped after step' in said
