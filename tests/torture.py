"""Runs that are killed again and again, and must end as those that never were: `python
tests/torture.py` kills a hundred times and reports

Kills are real: SIGKILL of a process that trains, at a random time, or just before a call that
changes a file (the seventh of the run, say), in the middle of writing a checkpoint, in the middle
of an evaluation. Then the run is resumed, and killed again. In the end its metrics.csv, its
weights, and all that is in its last checkpoint (optimizers, schedules, random generators, triggers,
the position in the data) are compared, bit by bit, with those of a run that was left alone.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from dlframe.architectures import MLP, Conditional, decoder, encoder, predictor
from dlframe.callbacks import Evaluate, StopEarly
from dlframe.checkpoints import newest
from dlframe.classifier import Classifier
from dlframe.data import Data, Items
from dlframe.evaluation import Evaluator, PriorSamples, Terms
from dlframe.files import verify
from dlframe.gan import GAN
from dlframe.image_sets import Digits
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.ramps import Ramp
from dlframe.run import Run
from dlframe.specs import Part, make
from dlframe.status import state
from dlframe.vae import VAE

ROOT = Path(__file__).resolve().parents[1]

# What is run: between them all that a resumed run could forget


class Ticks:
    "A clock on which each look takes a 64th of a second"

    now = 0.0

    def __call__(self):
        self.now += 1 / 64
        return self.now


class Clock(Part, pl.Callback):
    "The invented clock, so that triggers in seconds are due at the same steps again"

    def setup(self, trainer, pl_module, stage):
        pl_module.watch.clock = Ticks()


class Dropped(Part, nn.Module):
    "Layers with dropout"

    def __init__(self, in_shape=(1, 8, 8), width=32):
        super().__init__()
        self.mlp, self.dropout = MLP(in_shape, [width]), nn.Dropout(0.3)
        self.in_shape, self.out_shape = self.mlp.in_shape, self.mlp.out_shape

    def forward(self, x):
        return self.dropout(self.mlp(x))


class Jittered(Data):
    "Digits that are read row by row, moved and made noisy with three random generators"

    n_classes = 10

    def open(self, name):
        rows = Digits()[name]

        def read(i):
            x = rows[i]['x'].float() / 255
            return {
                'x': x.roll(random.randrange(-1, 2), -1)
                + 0.1 * torch.randn(x.shape)
                + float(0.1 * np.random.randn()),
                'y': rows[i]['y'],
            }

        return Items(read, 300)


def noisy():
    """Dropout, several posterior samples, gradients in pieces and clipped, a schedule, a weight
    that warms up in seconds, triggers in seconds
    """
    model = VAE(
        Conditional(Dropped(), (3,)),
        decoder('mlp', 3, (1, 8, 8), [32]),
        prior('mixture', 3, components=4),
        beta=Ramp(0.0, 1.0, '0.6 seconds'),
        n_samples=2,
    )
    o = Optimization(
        model,
        Digits('dynamic'),
        'AdamW',
        0.01,
        100,
        gradient_clip=1.0,
        schedule={'CosineAnnealingLR': {'T_max': '4 epochs'}},
        accumulate=2,
        weight_decay=0.1,
    )
    return Run(
        o,
        '2 seconds',
        [Evaluate(Terms('valid'), '0.4 seconds'), Evaluate(PriorSamples(4), '1 epoch')],
        name='noisy',
        log_every='0.3 seconds',
        save_every='0.2 seconds',
        callbacks=[Clock()],
    )


def players():
    "Two optimizers that alternate, a counter of each as trigger, an exponential schedule"
    gan = GAN(
        decoder('mlp', 2, (1, 8, 8), [32]),
        Conditional(Dropped(), (), head='bernoulli'),
        prior('standard_normal', 2),
    )
    o = Optimization(
        gan,
        Digits(),
        lr=0.002,
        batch_size=100,
        players={'discriminator': {'steps': 2, 'optimizer': 'RMSprop'}},
        schedule={'ExponentialLR': {'gamma': 0.99}},
    )
    return Run(
        o,
        '20 generator_steps',
        [Evaluate(PriorSamples(4), '7 generator_steps')],
        name='players',
        log_every='3 discriminator_steps',
        save_every='8 steps',
        callbacks=[Clock()],
    )


def readers():
    "Rows that are read, with noise, by two other processes; early stopping; momentum"
    o = Optimization(
        Classifier(predictor('mlp', (1, 8, 8), classes=10, widths=[32])),
        Jittered(),
        'SGD',
        0.1,
        32,
        momentum=0.9,
        nesterov=True,
    )
    return Run(
        o,
        '20 epochs',
        [Evaluate(Terms('valid'), '1 epoch')],
        name='readers',
        log_every='4 steps',
        save_every='7 steps',
        callbacks=[
            Clock(),
            make(
                pl.callbacks.EarlyStopping,
                'valid/loss',
                patience=1,
                min_delta=0.05,
                check_on_train_epoch_end=True,
            ),
        ],
    )


def shared():
    """An encoder that stands in two places, as in a VampPrior; early stopping by a duration; final
    numbers
    """
    q = encoder('mlp', (1, 8, 8), 3, [16, 16, 16])  # eight names that two parts share
    o = Optimization(
        VAE(q, decoder('mlp', 3, (1, 8, 8), [16]), prior('vamp', 3, encoder=q, components=4)),
        Digits(),
        lr=0.02,
        batch_size=200,
    )
    return Run(
        o,
        '40 epochs',
        [Evaluate(Terms('valid'), '4 steps')],
        name='shared',
        log_every='3 steps',
        save_every='5 steps',
        tests=[Terms('test')],
        callbacks=[Clock(), StopEarly('valid/loss', '20 steps', min_delta=0.5)],
    )


kinds = {f.__name__: f for f in (noisy, players, readers, shared)}


def machine(root):
    "Where runs go, and how many processes read"
    (root / 'runs').mkdir()
    (root / 'devices.yaml').write_text('torture: {accelerator: cpu, workers: 2, threads: 1}\n')
    os.environ.update(
        RUNS_ROOT=str(root / 'runs'),
        DEVICE_NAME='torture',
        DLFRAME_DEVICES=str(root / 'devices.yaml'),
    )


# How it is killed


def die():
    os.kill(os.getpid(), signal.SIGKILL)


calls = ('replace', 'link', 'fsync', 'unlink', 'mkdir')


def counting(at=None):
    "Count the calls that change files; die just before number `at`"
    seen = Counter()

    def counted(call):
        def new(*args, **kwargs):
            seen['n'] += 1
            if seen['n'] == at:
                die()
            return call(*args, **kwargs)

        return new

    for name in calls:
        setattr(os, name, counted(getattr(os, name)))
    return seen


def torn(at):
    "Die in the middle of writing checkpoint number `at`"
    save, seen = torch.save, Counter()

    def new(what, to, *args, **kwargs):
        seen['n'] += 1
        if seen['n'] != at:
            return save(what, to, *args, **kwargs)
        to.write(b'PK\3\4' + bytes(10_000)), to.flush(), die()

    torch.save = new


def looking(at):
    "Die in the middle of evaluation number `at`"
    look, seen = Evaluator.__call__, Counter()

    def new(self, *args):
        found, seen['n'] = look(self, *args), seen['n'] + 1
        return die() if seen['n'] == at else found

    Evaluator.__call__ = new


def live(kind, place, wound=None):
    """In a process of its own, whose number is returned: start the run of a kind in `place`, or go
    on with it
    """
    if pid := os.fork():
        return pid
    status = 1
    try:
        out = os.open(place.with_suffix('.log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        random.seed(), pl.seed_everything(0, verbose=False)
        if wound:
            wound()
        if (place / 'manifest.json').exists():
            Run.resume(place, packages=['torture'])
        else:
            run = kinds[kind]()
            run.name = place.name
            run.fit()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(pid, seconds):
    "Kill a process, unless it ends before"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.005, max(0, end - time.monotonic())))
    os.kill(pid, signal.SIGKILL)
    return ended(pid)


# What must be the same


def differences(a, b, path=''):
    "Paths at which two nested structures of plain data, arrays and tensors differ"
    if type(a) is not type(b):
        return [path]
    if isinstance(a, dict):
        return [
            d
            for k in {**a, **b}
            for d in (
                differences(a[k], b[k], f'{path}.{k}') if k in a and k in b else [f'{path}.{k}']
            )
        ]
    if isinstance(a, (list, tuple)):
        return (
            [path]
            if len(a) != len(b)
            else [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f'{path}.{i}')]
        )
    if isinstance(a, torch.Tensor):
        return (
            []
            if a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
            else [path]
        )
    return [] if a == b or a != a and b != b else [path]


clocks = ('seconds', 'watch', 'bytes')  # on a real clock these differ


def unclocked(x):
    "A checkpoint without what a real clock says"
    if isinstance(x, dict):
        return {
            k: unclocked(v)
            for k, v in x.items()
            if k not in clocks and not str(k).startswith(('seconds/', 'Evaluate('))
        }
    return [unclocked(v) for v in x] if isinstance(x, (list, tuple)) else x


def compare(whole, killed, clock=True):
    "What differs between two run folders; `clock` says that both ran on the invented one"
    found = []
    for folder in whole, killed:
        for name in (
            'manifest.json',
            'metrics.csv',
            'checkpoints/last.ckpt',
            'checkpoints/model.safetensors',
        ):
            verify(folder / name)
    rows = [(f / 'metrics.csv').read_text().splitlines() for f in (whole, killed)]
    if not clock:
        rows = [
            [','.join(r.split(',')[:5]) for r in rs if not r.startswith('seconds/')] for rs in rows
        ]
    if rows[0] != rows[1]:
        found.append('metrics.csv')
    if (whole / 'checkpoints/model.safetensors').read_bytes() != (
        killed / 'checkpoints/model.safetensors'
    ).read_bytes():
        found.append('model.safetensors')
    saved = [newest(f)[1] for f in (whole, killed)]
    found += differences(*(saved if clock else map(unclocked, saved)))
    results = [
        json.loads((f / 'manifest.json').read_text()).get('results') for f in (whole, killed)
    ]
    found += differences(*results, 'results')
    pictures = [
        {str(p.relative_to(f)): p.read_bytes() for p in (f / 'media').rglob('*.png')}
        for f in (whole, killed)
    ]
    return found + differences(*pictures, 'media')


def good(folder):
    "What is wrong with a folder whose process was just killed: nothing may be unreadable"
    wrong = []
    for name in (
        'manifest.json',
        'metrics.csv',
        'checkpoints/last.ckpt',
        'checkpoints/previous.ckpt',
    ):
        if not (folder / name).exists():
            continue
        try:
            verify(folder / name)
        except ValueError as e:
            wrong.append(str(e))
    metrics = folder / 'metrics.csv'
    if metrics.exists() and (text := metrics.read_bytes()) and not text.endswith(b'\n'):
        wrong.append('half a row')
    return wrong


class Report:
    "How often, and what came of it"

    def __init__(self):
        self.kills = Counter()
        self.resumes = 0
        self.runs = Counter()
        self.lost = []
        self.different = []

    def __str__(self):
        lines = [
            '| what was killed | '
            + ' | '.join(ways := sorted({w for _, w in self.kills}))
            + ' | runs |',
            '|---' * (len(ways) + 2) + '|',
        ]
        lines += [
            f'| {k} | {" | ".join(str(self.kills[k, w]) for w in ways)} | {self.runs[k]} |'
            for k in sorted(self.runs)
        ]
        return '\n'.join(
            [
                *lines,
                '',
                f'{sum(self.kills.values())} kills, {self.resumes} resumed, lost = '
                f'{len(self.lost)}, different = {len(self.different)}',
                *self.lost,
                *self.different,
            ]
        )


def whole(kind, root):
    """The run that is left alone: its folder, its seconds, how often it changes files, saves and
    looks
    """
    folder, told = root / 'runs' / f'{kind}-whole', root / f'{kind}.json'
    if told.exists():
        return folder, *json.loads(told.read_text())

    def count():
        seen, saves, looks = counting(), Counter(), Counter()
        save, look = torch.save, Evaluator.__call__

        def saving(*args, **kwargs):
            saves['n'] += 1
            return save(*args, **kwargs)

        def looked(*args):
            looks['n'] += 1
            return look(*args)

        torch.save, Evaluator.__call__ = saving, looked
        end = Run.fit

        def fit(self, *args):
            try:
                return end(self, *args)
            finally:
                told.write_text(
                    json.dumps([time.monotonic() - start, [seen['n'], saves['n'], looks['n']]])
                )

        Run.fit = fit

    start = time.monotonic()
    assert ended(live(kind, folder, count)) == 0, folder.with_suffix('.log').read_text()
    return folder, *json.loads(told.read_text())


def wounds(n_files, n_saves, n_looks, rng):
    "One way to be killed, by the process itself"
    way = rng.choice(['file', 'save', 'look'])
    at = rng.randint(1, {'file': n_files, 'save': n_saves, 'look': n_looks}[way])
    return way, {
        'file': lambda: counting(at),
        'save': lambda: torn(at),
        'look': lambda: looking(at),
    }[way]


def torture(kind, root, kills, report, rng, most=6):
    "Kill runs of one kind until there were so many kills"
    reference, seconds, numbers = whole(kind, root)
    done = 0
    while done < kills:
        place, here = root / 'runs' / f'{kind}-{report.runs[kind]}', 0
        report.runs[kind] += 1
        for _ in range(100):
            way, wound = ('time', None) if rng.random() < 0.5 else wounds(*numbers, rng)
            if here >= most or done >= kills:
                way, wound = None, None
            report.resumes += (place / 'manifest.json').exists()
            pid = live(kind, place, wound)
            status = kill_after(pid, rng.uniform(0.05, seconds)) if way == 'time' else ended(pid)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                report.lost.append(
                    f'{place.name}: ended with {status}: '
                    f'{place.with_suffix(".log").read_text()[-2000:]}'
                )
                break
            report.kills[kind, way], here, done = report.kills[kind, way] + 1, here + 1, done + 1
            if state(place) == 'finished':
                break  # all was written
            report.lost += [f'{place.name}: {w}' for w in good(place)]
        else:
            report.lost.append(f'{place.name}: never finished')
        if report.lost:
            return
        if state(place) != 'finished':
            report.lost.append(f'{place.name}: {state(place) or "nothing"} at the end')
        if found := compare(reference, place):
            report.different.append(f'{place.name}: {found}')
        shutil.rmtree(place)


def everywhere(kind, root, report, step=1, first=1):
    """Kill one run of a kind just before each call that changes a file (or every so many), and
    resume it once
    """
    reference, _, (n, *_) = whole(kind, root)
    for at in range(first, n + 1, step):
        place = root / 'runs' / f'{kind}-at-{at}'
        status = ended(live(kind, place, lambda: counting(at)))
        # metrics are written once a second: a fast run may make fewer calls
        if status == -signal.SIGKILL:
            report.kills[f'{kind}, each file', 'file'] += 1
            report.lost += [f'{place.name}: {w}' for w in good(place)]
            if state(place) != 'finished':  # all was written
                report.resumes += (place / 'manifest.json').exists()
                status = ended(live(kind, place))
            else:
                status = 0
        if status:
            report.lost.append(
                f'{place.name}: ended with {status}: '
                f'{place.with_suffix(".log").read_text()[-2000:]}'
            )
        elif found := compare(reference, place):
            report.different.append(f'{place.name}: {found}')
        shutil.rmtree(place, ignore_errors=True)
    report.runs[f'{kind}, each file'] += len(range(first, n + 1, step))


# As people start them: commands


def command(how, root, name):
    "The words that start a run, or go on with it, under `how`: papermill, or dlframe-run"
    folder = root / 'runs' / name
    if how == 'papermill':
        more = (
            ['-p', 'resume', folder]
            if (folder / 'manifest.json').exists()
            else ['-p', 'name', name]
        )
        page = [
            '-m',
            'papermill',
            ROOT / 'nbs/experiments/train.ipynb',
            root / f'{name}.ipynb',
            '-p',
            'save_every',
            '20 steps',
            '-p',
            'train_for',
            '300 steps',
            '-p',
            'evaluate_every',
            '70 steps',
            '-p',
            'posterior',
            'laplace',
        ]
        return [*page, *more]
    if (folder / 'manifest.json').exists():
        return ['-m', 'dlframe.reruns', '--package', 'torture', '--resume', folder]
    # only a process that is not forked has hashes of its own
    return [
        '-m',
        'dlframe.reruns',
        '--package',
        'torture',
        root / 'runs/shared-whole/manifest.json',
        f'run.name={name}',
    ]


def processes(folder):
    "The process that writes to a run's folder, if it says so"
    try:
        return [json.loads((folder / 'status.json').read_text())['process']]
    except (OSError, ValueError):
        return []


def commanded(how, root, kills, report, rng):
    "Kill a run that was started by a command, and what the command started"
    env = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
        'OMP_NUM_THREADS': '1',
        'PYTHONDONTWRITEBYTECODE': '1',
    }

    def start(name):
        return subprocess.Popen(
            [sys.executable, *map(str, command(how, root, name))],
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=open(root / f'{name}.out', 'a'),
            stderr=subprocess.STDOUT,
        )

    if how == 'papermill':
        assert start('papermill-whole').wait() == 0, (root / 'papermill-whole.out').read_text()
        reference, name = root / 'runs/papermill-whole', 'papermill-killed'
    else:
        reference, name = whole('shared', root)[0], 'command-killed'
    folder, seconds, done = root / 'runs' / name, 2.0, 0
    while done < kills:
        process, before = start(name), processes(folder)
        while process.poll() is None and (
            processes(folder) == before or not (folder / 'status.json').exists()
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, seconds))
        if process.poll() is not None or state(folder) == 'finished':  # it was too fast
            process.wait(), shutil.rmtree(folder, ignore_errors=True)
            seconds *= 0.7
            continue
        for pid in {process.pid, *processes(folder)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        done += 1
        report.kills[how, 'time'] += 1
        report.lost += [f'{name}: {w}' for w in good(folder)]
        report.resumes += 1
    report.runs[how] += 1
    if state(folder) != 'finished' and start(name).wait():
        report.lost.append(f'{name}: {(root / f"{name}.out").read_text()[-2000:]}')
    elif state(folder) != 'finished':
        report.lost.append(f'{name}: {state(folder)}')
    elif found := compare(reference, folder, clock=how != 'papermill'):
        report.different.append(f'{name}: {found}')


def main(argv=None):
    args = argparse.ArgumentParser(
        description='Kill runs, resume them, compare them with runs that were left alone'
    )
    args.add_argument(
        '--kills', type=int, default=100, help='how many kills of runs of several kinds'
    )
    args.add_argument(
        '--commands', type=int, default=4, help='besides, how many of papermill and of dlframe-run'
    )
    args.add_argument(
        '--every',
        type=int,
        default=5,
        help='besides, a kill just before every so many of the calls that change files; 0 leaves '
        'it out',
    )
    args.add_argument('--seed', type=int, default=None, help='of the moments')
    args = args.parse_args(argv)
    seed = args.seed if args.seed is not None else random.randrange(10**6)
    rng, report, start = random.Random(seed), Report(), time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        machine(root)
        for i, kind in enumerate(kinds):
            torture(
                kind, root, args.kills // len(kinds) + (i < args.kills % len(kinds)), report, rng
            )
        if args.every:
            for kind in kinds:
                everywhere(kind, root, report, args.every, first=1 + seed % args.every)
        if args.commands:
            for how in 'papermill', 'dlframe-run':
                commanded(how, root, args.commands, report, rng)
    print(f'{report}\n\nseed {seed}, {time.monotonic() - start:.0f} s')
    return 1 if report.lost or report.different else 0


if __name__ == '__main__':
    # classes of a module, which a manifest can name, not of `__main__`
    from torture import main as main_of_module

    sys.exit(main_of_module())
