"""The real client of W&B against a server on loopback: what is logged arrives, what arrived is
loaded, and without a server nothing stops
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from limits import PATIENCE
from wandb_stub import ENTITY, KEY, Service, server
from warm import python as warm_python

LEAVE = """
import json, os, sys, torch, safetensors.torch
from pathlib import Path
import matplotlib.pyplot as plt, pandas as pd
from dlframe.architectures import decoder, encoder
from dlframe.entries import Figure, Image, Scalar, Scalars, Table, Text
from dlframe.loggers import logger
from dlframe.priors import prior
from dlframe.specs import spec, write
from dlframe.vae import VAE

def leave(folder, seed, steps):
    folder = Path(folder)
    (folder/'checkpoints').mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    q = encoder('mlp', (1, 4, 4), z_dim=2, widths=[8])
    p = decoder('mlp', 2, (1, 4, 4), widths=[8])
    model = VAE(q, p, prior('standard_normal', 2))
    manifest = {**spec({'model': model}), 'parameters': {'seed': seed}}
    write(manifest, folder/'manifest.json')
    here = {'steps': 0, 'epochs': 0., 'samples': 0, 'seconds': 0.}
    loggers = logger('wandb')
    loggers.counters = lambda: here
    loggers.start(folder, manifest, 'test')
    for step in steps:
        here.update(steps=step, epochs=step/100, samples=128*step, seconds=step/10)
        loggers.log('valid', Scalars({'loss': 10 - step + seed, 'rate': 1/3}), here)
        loggers.log('valid/elbo', Scalar(-1.5), here)
    figure, ax = plt.subplots(figsize=(1, 1))
    others = {
        'samples': Image(torch.full((1, 4, 4), 7, dtype=torch.uint8)),
        'plot': Figure(figure),
        'table': Table(pd.DataFrame({'a': [1, 2]})),
        'note': Text('a < b'),
    }
    for name, entry in others.items(): loggers.log(name, entry, here)
    loggers.finalize('success')
    safetensors.torch.save_model(model, str(folder/'checkpoints/model.safetensors'))
    torch.save({'state_dict': {}}, folder/'checkpoints/last.ckpt')
    loggers.close()

# each in a process of its own; torch is imported once
for folder, seed, steps, more in json.loads(sys.argv[1]):
    if child := os.fork():
        if os.waitpid(child, 0)[1]: sys.exit(1)
        continue
    os.environ.update(more)
    leave(folder, seed, steps)
    break
"""


def environment(home, url, **more):
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith('WANDB') and k.lower() not in ('http_proxy', 'https_proxy', 'all_proxy')
    }
    return {
        **kept,
        'HOME': str(home),
        'WANDB_BASE_URL': url,
        'WANDB_API_KEY': KEY,
        'RUNS_ROOT': str(home / 'runs'),
        'OMP_NUM_THREADS': '1',
        'MPLBACKEND': 'agg',
        'PYTHONPATH': str(Path(__file__).parent.parent),
        **more,
    }


def python(code, *words, home, url, limit=PATIENCE, **more):
    "Run code in a process of its own; what it printed, and what it complained of"
    r = subprocess.run(
        warm_python('-c', code, *words),
        env=environment(home, url, **more),
        cwd=home,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=limit,
    )
    assert not r.returncode, r.stderr
    assert KEY not in r.stdout + r.stderr
    return r.stdout, r.stderr


FILES = ['manifest.json', 'metrics.csv', 'checkpoints/model.safetensors', 'checkpoints/last.ckpt']
COUNTERS = {'steps', 'epochs', 'samples', 'seconds'}


def arrived(run, folder, steps):
    "What the server has of a run is what its folder has"
    numbers = [row for row in run['history'] if 'valid/loss' in row]
    assert [row['steps'] for row in numbers] == steps and all(
        row.keys() >= COUNTERS for row in run['history']
    )
    assert [row['valid/loss'] for row in numbers] == [10 - s for s in steps]
    assert (
        run['summary']['valid/loss'],
        run['summary']['valid/elbo'],
        run['summary']['steps'],
    ) == (10 - steps[-1], -1.5, steps[-1])
    assert run['ended'][-1] == 0 and run['config']['seed']['value'] == 0
    # '1' a name, '2' a pattern, '5' its axis: the place of another, counted from 1
    metrics = run['config']['_wandb']['value']['m']
    assert [metrics[m['5'] - 1]['1'] for m in metrics if m.get('2') == '*'] == ['steps']
    assert [run['files'][f] == (folder / f).read_bytes() for f in FILES] == [True] * 4
    last = {k: v for row in run['history'] for k, v in row.items()}
    for name in 'logged/samples', 'plot', 'table', 'note':
        assert last[name]['path'] in run['files'], name
    assert b'<pre>a &lt; b</pre>' in run['files'][last['note']['path']]
    assert not [p for p in folder.rglob('*') if p.is_file() and KEY.encode() in p.read_bytes()]


def leave(*jobs, home, **options):
    "Runs in folders of `home`, one after the other: name, seed, steps, environment"
    return python(
        LEAVE,
        json.dumps(
            [(str(home / 'runs' / name), seed, steps, more) for name, seed, steps, more in jobs]
        ),
        home=home,
        **options,
    )


def leave_three(home, s):
    "A run that is stopped and resumed, and two runs of an agent"
    agent = {'WANDB_SWEEP_ID': 'sweep1', 'WANDB_PROJECT': 'test', 'WANDB_ENTITY': ENTITY}
    leave(
        ('a', 0, [0, 1], {}),
        ('a', 0, [2, 3], {}),
        *((f's{i}', i, [0, 5], {**agent, 'WANDB_RUN_ID': f'sweep1r{i}'}) for i in (1, 2)),
        home=home,
        url=s.url,
    )
    name = (home / 'runs/a/wandb_id').read_text()
    assert [*s.stub.runs] == [('test', name), ('test', 'sweep1r1'), ('test', 'sweep1r2')]
    assert [r['sweep'] for r in s.stub.runs.values()] == [None, 'sweep1', 'sweep1']
    arrived(s.stub.runs['test', name], home / 'runs/a', [0, 1, 2, 3])
    # tables are files as well, which is enough
    assert {*s.stub.unknown} <= {'ArtifactType', 'CreateArtifact'}
    return name


READ = """
import sys
from dlframe.loading import best, load
for words in sys.argv[1:]:
    if words == 'nothing':
        import wandb
        wandb.Api = None
        continue
    try: found = eval(words)
    except (OSError, KeyError, ValueError) as e: print(f'{type(e).__name__}: {e}')
    else: print(found.folder, found.metrics['valid/loss'].iloc[-1])
"""


def test_what_is_logged_arrives_and_is_loaded(tmp_path):
    home, elsewhere = tmp_path / 'home', tmp_path / 'elsewhere'
    home.mkdir(), elsewhere.mkdir()
    with server() as s:
        name = leave_three(home, s)
        # nothing of it is left
        s.stub.runs['test', 'sweep1r3'] = {
            **s.stub.run('test', 'sweep1r2'),
            'name': 'sweep1r3',
            'files': {},
            'summary': {'valid/loss': -100},
        }
        sweep = f"'{ENTITY}/test/sweeps/sweep1'"
        asked = [
            f"load('{ENTITY}/test/{name}')",
            f'best({sweep})',
            f"best({sweep}, goal='maximize')",
            f"best({sweep}, 'valid/los')",
            f"load('{ENTITY}/test/nobody')",
            f"best('{ENTITY}/test/sweeps/none')",
            f"best({sweep}, goal='maximize', by='best')",
            'nothing',
            f"load('{ENTITY}/test/{name}')",
        ]
        said = python(READ, *asked, home=elsewhere, url=s.url)[0].splitlines()
    kept = elsewhere / 'runs/wandb' / ENTITY / 'test'
    left_out = '1 of 3 runs left out: sweep1r3 (without a checkpoint)'
    assert said[:5] == [
        f'{kept / name} 7.0',
        left_out,
        f'{kept}/sweep1r1 6.0',
        left_out,
        f'{kept}/sweep1r2 7.0',
    ]
    assert "did you mean 'valid/loss'?" in said[5]
    assert said[6].startswith(
        f"MissingFile: '{ENTITY}/test/nobody' must be a folder, or be found on W&B, which says:"
    ) and said[7].startswith('MissingFile')
    for run, folder in (name, 'a'), ('sweep1r1', 's1'), ('sweep1r2', 's2'):
        assert {str(p.relative_to(kept / run)) for p in (kept / run).rglob('*') if p.is_file()} == {
            *FILES[:3],
            'wandb_id',
        }
        for f in FILES[:3]:
            assert (kept / run / f).read_bytes() == (home / 'runs' / folder / f).read_bytes()
    assert [p.name for p in kept.iterdir() if p.name[0] == '.'] == []
    assert said[10:] == said[:1]  # kept: W&B is not asked again
    assert said[8] == left_out
    assert said[9].startswith(
        "InvalidValue: `by` must be 'last' where the weights of the best moment were not kept: "
        'valid/loss of sweep1r2 was 12 at step 0, and is 7 with the weights of its end'
    )


def test_without_a_server_it_goes_on_offline(tmp_path):
    said, _ = leave(('a', 0, [0, 1], {}), home=tmp_path, url='http://127.0.0.1:9')
    (session,) = tmp_path.glob('runs/a/wandb/offline-run-*')
    assert (
        said == 'W&B: http://127.0.0.1:9 does not answer. Logging offline; send it later with '
        f'`wandb sync --include-online {session}`\n'
    )
    assert len(list(session.glob('*.wandb'))) == 1
    assert (tmp_path / 'runs/a/metrics.csv').read_text().count('valid/loss') == 2


TRAIN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
import torch
from dlframe.entries import Image, Scalars
from dlframe.loggers import FileLogger, Loggers, WandbLogger

def train(folder, plan):
    out = os.fdopen(os.dup(1), 'w')
    (folder/'checkpoints').mkdir(parents=True, exist_ok=True)
    (folder/'manifest.json').write_text('{}')
    for i, name in enumerate(('said', 'complaints'), 1):
        os.dup2(os.open(folder/name, os.O_CREAT|os.O_WRONLY|os.O_APPEND), i)
    here = {'steps': 0, 'epochs': 0., 'samples': 0, 'seconds': 0.}
    for what, value in plan:
        began = time.monotonic()
        if what == 'server':
            print(folder.name, value, file=out, flush=True)
            while not (folder/value).exists(): time.sleep(.01)
            (folder/value).unlink()
        elif what == 'start':
            loggers = Loggers(FileLogger(), WandbLogger(patience=45))
            loggers.counters = lambda: here
            loggers.start(folder, {'parameters': {'seed': 0}}, 'test')
        elif what == 'wait': time.sleep(value)
        elif what == 'kill':
            subprocess.run(['pkill', '-KILL', '-P', str(os.getpid()), 'wandb-core'], check=True)
        elif what == 'log':
            for step in range(*value):
                here.update(steps=step, epochs=step/100, samples=128*step, seconds=step/10)
                loggers.log('valid', Scalars({'loss': 10 - step}), here)
                if step%100: continue
                picture = torch.full((1, 4, 4), step%256, dtype=torch.uint8)
                loggers.log('valid/picture', Image(picture), here)
        else:
            loggers.finalize(value)
            for name in 'model.safetensors', 'last.ckpt':
                (folder/'checkpoints'/name).write_bytes(name.encode()*100)
            began = time.monotonic()
            loggers.close()
        print(folder.name, what, time.monotonic() - began, file=out, flush=True)

if 'wandb' in sys.modules: sys.exit('wandb makes a folder that the first child would remove')
children = []
for folder, plan, more in json.loads(sys.argv[1]):
    if child := os.fork(): children.append(child)
    else:
        os.environ.update(more)
        train(Path(folder), plan)
        sys.exit()
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def wait_for_rows(server):
    "Until something has arrived, which W&B sends each second"
    end = time.monotonic() + PATIENCE
    while not any(run['history'] for run in server.stub.runs.values()):
        assert time.monotonic() < end, 'nothing arrives'
        time.sleep(0.05)


def train(home, servers, plans):
    """Train at the same time, each with its own server, which becomes what the plan says; how long
    each thing took
    """
    jobs = [
        (
            str(home / 'runs' / name),
            plan,
            {'WANDB_BASE_URL': servers[name].url, 'WANDB__FILE_STREAM_TRANSMIT_INTERVAL': '1'},
        )
        for name, plan in plans.items()
    ]
    took = {name: {} for name in plans}
    with subprocess.Popen(
        warm_python('-c', TRAIN, json.dumps(jobs)),
        env=environment(home, ''),
        cwd=home,
        text=True,
        stdout=subprocess.PIPE,
    ) as p:
        for name, what, *seconds in map(str.split, p.stdout):
            if seconds:
                took[name].setdefault(what, []).append(float(seconds[0]))
            else:
                if what == 'arrived':
                    wait_for_rows(servers[name])
                else:
                    servers[name].become({'well': None}.get(what, what))
                (home / 'runs' / name / what).touch()
    assert p.returncode == 0, [(home / 'runs' / name / 'complaints').read_text() for name in plans]
    return took


def told(home, name):
    "The commands that were told, one to a line, and nothing else"
    lines = (home / 'runs' / name / 'said').read_text().splitlines()
    assert 'wandb sync' not in (home / 'runs' / name / 'complaints').read_text()
    return [re.fullmatch(r'W&B: .*; send it later with `(.*)`', line)[1] for line in lines]


def send(home, servers, commands):
    "What one is told to do, all at the same time"
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    sent = [
        subprocess.Popen(
            c,
            shell=True,
            env=environment(home, servers[name].url, PATH=path),
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, c in commands.items()
    ]
    assert [p.wait() for p in sent] == [0] * len(sent)


def whole(home, server, name, steps):
    """The server has one run, with every row and file; rows that were sent twice have the same
    number, by which W&B tells
    """
    ((_, run_id),) = server.stub.runs
    run, folder = server.stub.run('test', run_id), home / 'runs' / name
    assert run_id == (folder / 'wandb_id').read_text()
    rows = {}
    for row in run['history']:
        assert rows.setdefault(row['_step'], row) == row
    assert sorted(rows) == [*range(len(rows))]
    assert [rows[i]['steps'] for i in sorted(rows) if 'valid/loss' in rows[i]] == steps
    for row in rows.values():
        assert 'valid/picture' not in row or row['valid/picture']['path'] in run['files']
    assert [run['files'].get(f) == (folder / f).read_bytes() for f in FILES] == [True] * 4
    assert run['ended'][-1] == 0
    return run


# Seconds: six times the patience of `close`, and less than any test may take
FOR_GOOD = 300.0


def test_training_does_not_mind_what_becomes_of_the_server(tmp_path):
    def plan(*middle, start='well'):
        return [('server', start), ('start', 0), ('log', (0, 250)), *middle, ('close', 'success')]

    rest = ('log', (250, 500))
    troubles = ('gone', 'failing', 'silent')
    again = [('server', 'well'), ('start', 1), ('log', (400, 500))]
    plans = {t: plan(('wait', 0.5), ('server', t), rest) for t in troubles}
    plans |= {
        'at-start': plan(rest, start='silent'),
        'back': plan(('server', 'gone'), ('wait', 3), ('server', 'well'), rest),
        'half': plan(('server', 'arrived'), ('server', 'gone'), rest),
        'in-close': plan(rest),
        'killed': plan(('wait', 2), ('kill', 0), rest),
        'preempted': plan(('log', (250, 400)), ('close', 'preempted'), *again),
        'later': plan(('log', (250, 400)), ('close', 'failed'), *again, start='gone'),
    }
    servers = {name: Service() for name in plans}
    servers['in-close'].stub.last = 'checkpoints/last.ckpt'
    took = train(tmp_path, servers, plans)
    # what logging costs on this machine, with so many at once
    well = max(t['log'][0] for name, t in took.items() if plans[name][0] == ('server', 'well'))
    for name in plans:
        # what waits for a server would wait as long as it is gone, which is for good
        assert max(took[name]['log']) < FOR_GOOD + well and took[name]['close'][0] < FOR_GOOD, (
            name,
            took[name],
        )
        assert numbers(tmp_path / 'runs' / name)[1:] and [
            n.split(',')[2] for n in numbers(tmp_path / 'runs' / name)[1:]
        ] == [str(s) for s in range(500)]
    assert took['at-start']['start'][0] < took['gone']['start'][0] + FOR_GOOD and all(
        took[name]['close'][0] > 9 for name in (*troubles, 'half', 'in-close')
    )
    commands = {name: told(tmp_path, name) for name in plans}
    assert {name: len(c) for name, c in commands.items()} == {
        name: {'back': 0, 'preempted': 0, 'later': 2}.get(name, 1) for name in plans
    }
    whole(tmp_path, servers['back'], 'back', [*range(500)])
    assert whole(tmp_path, servers['preempted'], 'preempted', [*range(500)])['ended'] == [
        'preempting',
        1,
        0,
    ]
    assert not servers['later'].stub.runs
    before = sum(len(run['history']) for run in servers['half'].stub.runs.values())
    for s in servers.values():
        s.stub.last = s.become(None)
    send(tmp_path, servers, {name: c[-1] for name, c in commands.items() if c and name != 'killed'})
    assert 0 < before < 502, 'part of it had arrived'
    for name in (*troubles, 'at-start', 'half', 'in-close', 'later'):
        whole(tmp_path, servers[name], name, [*range(500)])


def test_a_key_that_is_refused_is_not_shown(tmp_path):
    with server() as s:
        s.stub.refuses = True
        said, complaints = leave(('a', 0, [0, 1], {}), home=tmp_path, url=s.url)
    assert [
        line.count('Logging offline') for line in said.splitlines() if line.startswith('W&B: ')
    ] == [1]
    assert not [p for p in tmp_path.rglob('*') if p.is_file() and KEY.encode() in p.read_bytes()]


STOP = """
import sys
import pytorch_lightning as pl
from dlframe.architectures import decoder, encoder
from dlframe.image_sets import images
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.vae import VAE

class Stop(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.asked_to_stop = pl_module.counters['steps'] == 13

def new(name, logger):
    pl.seed_everything(0, verbose=False)
    q, p = encoder('mlp', (1, 8, 8), 2, [16]), decoder('mlp', 2, (1, 8, 8), [16])
    vae = VAE(q, p, prior('standard_normal', 2))
    options = dict(name=name, logger=logger, log_every='5 steps', project='test')
    return Run(Optimization(vae, images('digits')), '2 epochs', **options)

if sys.argv[1] == 'go on': run = Run.resume(sys.argv[2])
else:
    new('whole', 'files').fit()
    run = new('stopped', 'wandb')
    run.callbacks.append(Stop())
    # nobody else's run has it
    run.manifest = lambda make=run.manifest: (run.callbacks.clear(), make())[1]
    run.fit()
"""


def numbers(folder):
    return [line.rsplit(',', 1)[0] for line in (folder / 'metrics.csv').read_text().splitlines()]


def test_a_run_goes_on_from_its_id_on_another_machine(tmp_path):
    home, elsewhere = tmp_path / 'home', tmp_path / 'elsewhere'
    home.mkdir(), elsewhere.mkdir()
    with server() as s:
        python(STOP, 'stop', home=home, url=s.url)
        name = (home / 'runs/stopped/wandb_id').read_text()
        assert 'checkpoints/model.safetensors' not in s.stub.run('test', name)['files']
        python(STOP, 'go on', f'{ENTITY}/test/{name}', home=elsewhere, url=s.url)
        whole, folder = home / 'runs/whole', elsewhere / 'runs/wandb' / ENTITY / 'test' / name
        assert [*s.stub.runs] == [('test', name)]
        assert (
            s.stub.run('test', name)['files'][FILES[2]]
            == (whole / FILES[2]).read_bytes()
            == (folder / FILES[2]).read_bytes()
        )
    assert numbers(folder) == numbers(whole)
