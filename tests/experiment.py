"""The train experiment as people start it: a command in some folder, or a kernel of Jupyter; and
what it left
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from filelock import FileLock
from jupyter_client import KernelManager
from limits import PATIENCE
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from tree import BIN, ROOT
from warm import KERNELS, python

PAGE = 'nbs/experiments/train.ipynb'

# Variables that would tell a program of whoever runs the tests
OWN = re.compile(
    r'DLFRAME|WANDB|PAPERMILL|JUPYTER|IPYTHON|XDG|MPL'
    r'|(DEVICE_NAME|DATA_ROOT|RUNS_ROOT|no_proxy)$',
    re.I,
)


def environment(home, project=ROOT, **more):
    "Of a user whose home folder is new, and who has no network: `more` are further variables"
    kept = {k: v for k, v in os.environ.items() if not OWN.match(k)}
    proxies = 'http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'
    nowhere = dict.fromkeys(proxies, 'http://127.0.0.1:9')
    return {
        **kept,
        **nowhere,
        'HOME': str(home),
        'PATH': os.pathsep.join([str(BIN), os.environ['PATH']]),
        'PYTHONPATH': str(project),
        'PYTHONDONTWRITEBYTECODE': '1',
        'OMP_NUM_THREADS': '1',
        **({'JUPYTER_PATH': os.environ[KERNELS]} if KERNELS in os.environ else {}),
        **{k: str(v) for k, v in more.items()},
    }


def start(*cmd, env, cwd=ROOT):
    "Run a command to its end"
    return subprocess.run(
        [str(c) for c in cmd],
        cwd=cwd,
        env=env,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )


def papermill(notebook, output, env, cwd=ROOT, **values):
    "`papermill notebook output -p name value …`"
    words = [word for k, v in values.items() for word in ('-p', k, v)]
    return start('papermill', notebook, output, *words, env=env, cwd=cwd)


def dlframe_run(*words, env, cwd=ROOT):
    "`dlframe-run …`, of the project that `env` names"
    command = python('-c', 'from dlframe.reruns import main; main()')
    return start(*command, *words, env=env, cwd=cwd)


def code(page=ROOT / PAGE):
    cells = json.loads(page.read_text('utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


class Jupyter:
    "A kernel that Jupyter started in the notebook's folder, with somebody in front of it"

    def __init__(self, folder, env, connection):
        self.manager = KernelManager(kernel_name='python3', connection_file=str(connection))
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def cell(self, source, listen=lambda message: None):
        """Run a cell; its error as text, `''` if there was none, and what it said; all that came is
        in `heard`, and goes to `listen` as it comes
        """
        said, self.heard = [], []

        def hear(message):
            self.heard.append(message)
            if message['msg_type'] == 'stream':
                said.append(message['content']['text'])
            listen(message)

        reply = self.client.execute_interactive(
            source, allow_stdin=True, output_hook=hear, timeout=PATIENCE
        )['content']
        error = '' if reply['status'] == 'ok' else f'{reply["ename"]}: {reply["evalue"]}'
        return error, ''.join(said)

    def run(self, cells, **values):
        """Write `values` into the parameters, as one does by hand, and run the cells from the
        first, up to an error
        """
        cells, heard = list(cells), ''
        for name, value in values.items():
            declared = re.compile(rf'^({name}: .+?) = .+?(?= #)', re.M)
            cells[0], n = declared.subn(lambda m: f'{m[1]} = {value!r}', cells[0])
            assert n == 1, name
        for source in cells:
            error, said = self.cell(source)
            heard += said
            if error:
                return error, heard
        return '', heard


def attentive():
    """For a process that is started: ignore no signal, though whoever started the tests may have
    said so (`nohup`)
    """
    for number in signal.SIGINT, signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)


def once(tmp_path_factory, name, make=lambda folder: None):
    "The folder that `make(folder)` fills: one of the parallel processes does it, the others wait"
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent
    folder, made = base / name, base / f'{name}.made'
    with FileLock(base / f'{name}.lock'):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def left(*folders):
    "Names of all there is in some folders, with contents"
    paths = [p for folder in map(Path, folders) for p in [folder, *folder.rglob('*')]]
    return {p: p.is_file() and p.read_bytes() for p in paths if p.exists()}


def numbers(run):
    "Rows of `metrics.csv`, without seconds"
    with open(run / 'metrics.csv', newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    return [
        {k: v for k, v in r.items() if k != 'seconds'}
        for r in rows
        if not r['name'].startswith('seconds/')
    ]


def weights(run):
    return (run / 'checkpoints/model.safetensors').read_bytes()


# A small trial of a sweep, which stays where it is, or fails, as it is asked to

DECLARED = """beta: float = 1.
lr: float = 1e-3
train_for: str = '30 steps'
logger: str = 'files'
stays: str = '' # Once: 'in training', 'after training', or both
fails: str = '' # 'early', 'killed', in 'training', 'late\'"""

TRIAL = [
    """if fails == 'early': import nothing_of_this_name
from dlframe.notebooks import parameters
settings = parameters()
import os, time
from pathlib import Path
if fails == 'killed': os.kill(os.getpid(), 9)
import pytorch_lightning as pl
from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.evaluation import Terms
from dlframe.image_sets import images
from dlframe.optimization import Optimization
from dlframe.priors import prior
from dlframe.run import Run
from dlframe.specs import Part
from dlframe.vae import VAE

def stay(where, asked=lambda: False):
    "Here, the first time, until this kernel is asked to go, or killed"
    here = Path(f'{run.folder}.stayed {where}')
    end = time.monotonic() + 1800 # a test that was killed does not come back
    if where not in stays or here.exists(): return
    here.write_text(str(os.getppid()))
    while here.read_text() != 'go' and not asked() and time.monotonic() < end: time.sleep(.01)

class Stay(Part, pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.counters['steps'] != 17: return
        if fails == 'training': raise OSError('the cable')
        stay('in training', lambda: pl_module.asked_to_stop)""",
    """pl.seed_everything(0, verbose=False)
q, p = encoder('mlp', (1, 8, 8), 2, [16]), decoder('mlp', 2, (1, 8, 8), [16])
vae = VAE(q, p, prior('standard_normal', 2), beta=beta)
run = Run(
    Optimization(vae, images('digits'), lr=lr), train_for, [Evaluate(Terms('valid'), '10 steps')],
    project='test', log_every='3 steps', save_every='5 steps', logger=logger, callbacks=[Stay()])
run = run.fit()""",
    """stay('after training')
assert fails != 'late', 'nothing was learned'
print(run.optimization.counters['steps'], 'steps')""",
]


def trial_page(to):
    "Write it"
    cells = [new_code_cell(DECLARED, metadata={'tags': ['parameters']}), *map(new_code_cell, TRIAL)]
    kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    write(new_notebook(cells=cells, metadata={'kernelspec': kernel}), to)


def stayed(run, where):
    "The process of papermill, once its kernel waits there"
    at = run.with_name(f'{run.name}.stayed {where}')
    return int(at.read_text() or 0) if at.exists() else 0


def go(run, where):
    run.with_name(f'{run.name}.stayed {where}').write_text('go')


def statuses(notebook):
    cells = json.loads(notebook.read_text('utf-8'))['cells']
    return [
        c['metadata']['papermill']['status']
        for c in cells
        if c['cell_type'] == 'code' and 'injected-parameters' not in c['metadata']['tags']
    ]
