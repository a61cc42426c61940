"The train experiment as people start it: a command in some folder, or a kernel of Jupyter; and what it left"
import csv, json, os, re, shutil, signal, subprocess, sys
from pathlib import Path

from filelock import FileLock
from jupyter_client import KernelManager
from tree import BIN, ROOT

PAGE = 'nbs/experiments/train.ipynb'

def environment(home, project=ROOT, **more):
    "Of a user whose home folder is new, and who has no network: `more` are further variables"
    kept = {k: v for k, v in os.environ.items() if not re.match(r'DLFRAME|WANDB|PAPERMILL|JUPYTER|IPYTHON|XDG|MPL|(DEVICE_NAME|DATA_ROOT|RUNS_ROOT|no_proxy)$', k, re.I)}
    nowhere = dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'), 'http://127.0.0.1:9')
    return {**kept, **nowhere, 'HOME': str(home), 'PATH': os.pathsep.join([str(BIN), os.environ['PATH']]), 'PYTHONPATH': str(project),
            'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1', **{k: str(v) for k, v in more.items()}}

def start(*cmd, env, cwd=ROOT):
    "Run a command to its end"
    return subprocess.run([str(c) for c in cmd], cwd=cwd, env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL)

def papermill(notebook, output, env, cwd=ROOT, **values):
    "`papermill notebook output -p name value …`"
    return start('papermill', notebook, output, *(word for k, v in values.items() for word in ('-p', k, v)), env=env, cwd=cwd)

def dlframe_run(*words, env, cwd=ROOT):
    "`dlframe-run …`, of the project that `env` names"
    return start(sys.executable, '-c', 'from dlframe.run import main; main()', *words, env=env, cwd=cwd)

def code(page=ROOT/PAGE): return [''.join(c['source']) for c in json.loads(page.read_text('utf-8'))['cells'] if c['cell_type'] == 'code']

class Jupyter:
    "A kernel that Jupyter started in the notebook's folder, with somebody in front of it"
    def __init__(self, folder, env, connection):
        self.manager = KernelManager(kernel_name='python3', connection_file=str(connection))
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def __enter__(self): return self
    def __exit__(self, *args): self.client.stop_channels(), self.manager.shutdown_kernel(now=True)

    def cell(self, source, listen=lambda message: None):
        "Run a cell; its error as text, `''` if there was none, and what it said; all that came is in `heard`, and goes to `listen` as it comes"
        said, self.heard = [], []
        def hear(message):
            self.heard.append(message)
            if message['msg_type'] == 'stream': said.append(message['content']['text'])
            listen(message)
        reply = self.client.execute_interactive(source, allow_stdin=True, output_hook=hear, timeout=300)['content']
        return '' if reply['status'] == 'ok' else f"{reply['ename']}: {reply['evalue']}", ''.join(said)

    def run(self, cells, **values):
        "Write `values` into the parameters, as one does by hand, and run the cells from the first, up to an error"
        cells, heard = list(cells), ''
        for name, value in values.items():
            cells[0], n = re.subn(rf'^({name}: .+?) = .+?(?= #)', lambda m: f'{m[1]} = {value!r}', cells[0], flags=re.M)
            assert n == 1, name
        for source in cells:
            error, said = self.cell(source)
            heard += said
            if error: return error, heard
        return '', heard

def attentive():
    "For a process that is started: ignore no signal, though whoever started the tests may have said so (`nohup`)"
    for number in signal.SIGINT, signal.SIGHUP: signal.signal(number, signal.SIG_DFL)

def once(tmp_path_factory, name, make=lambda folder: None):
    "The folder that `make(folder)` fills: one of the parallel processes does it, the others wait"
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: base = base.parent
    folder, made = base/name, base/f'{name}.made'
    with FileLock(base/f'{name}.lock'):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder

def left(*folders):
    "Names of all there is in some folders, with contents"
    return {p: p.is_file() and p.read_bytes() for folder in map(Path, folders) for p in [folder, *folder.rglob('*')] if p.exists()}

def numbers(run):
    "Rows of `metrics.csv`, without seconds"
    with open(run/'metrics.csv', newline='', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    return [{k: v for k, v in r.items() if k != 'seconds'} for r in rows if not r['name'].startswith('seconds/')]

def weights(run): return (run/'checkpoints/model.safetensors').read_bytes()
