"""`papermill --engine dlframe`, as a process: what is refused, signals, kernels that die, what is
on disk meanwhile
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from configparser import ConfigParser
from importlib.metadata import EntryPoint

import pytest
from experiment import attentive, environment, left
from limits import PATIENCE
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tree import ROOT, run


@pytest.fixture(scope='module')
def registered(tmp_path_factory):
    """The package's metadata, which is where papermill looks for engines, and a kernel that leaves
    a file when it starts
    """
    folder = tmp_path_factory.mktemp('registered')
    made = run('python', 'setup.py', '-q', 'egg_info', '--egg-base', folder)
    assert made.returncode == 0, made.stdout
    kernel = f'exec "{sys.executable}" -m ipykernel_launcher -f "$0"'
    for name, start in (
        ('counted', f'touch started; {kernel}'),
        ('broken', 'exit 3'),
        ('late', f'kill -TERM $PPID; {kernel}'),
    ):
        (folder / 'kernels' / name).mkdir(parents=True)
        spec = {
            'argv': ['sh', '-c', start, '{connection_file}'],
            'display_name': name,
            'language': 'python',
        }
        (folder / 'kernels' / name / 'kernel.json').write_text(json.dumps(spec))
    return folder


def test_registration(registered):
    "What setup.py hands on is what settings.ini says, and has what papermill asks of an engine"
    ini, made = ConfigParser(), ConfigParser()
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    made.read(registered / 'dlframe.egg-info/entry_points.txt')
    assert dict(made['papermill.engine']) == {
        'dlframe': ini['DEFAULT']['papermill_engines'].partition('=')[2]
    }
    engine = EntryPoint('dlframe', made['papermill.engine']['dlframe'], 'papermill.engine').load()
    assert all(
        callable(getattr(engine, name))
        for name in ('execute_notebook', 'nb_kernel_name', 'nb_language')
    )


@pytest.mark.parametrize('first', ['dlframe.engine', 'papermill'])
def test_import(first, registered, tmp_path):
    """Each may be imported before the other; what every papermill now imports is light, and sets
    nothing
    """
    heavy = "{'torch', 'pytorch_lightning', 'pandas', 'matplotlib', 'IPython'} & set(sys.modules)"
    code = (
        f'import signal, sys; before = signal.getsignal(15); import {first}; import '
        f'dlframe.engine, papermill.engines as e; sys.exit(bool({heavy}) or signal.getsignal(15) '
        "!= before or e.papermill_engines.get_engine('dlframe') is not dlframe.engine)"
    )
    env = environment(tmp_path, PYTHONPATH=f'{ROOT}{os.pathsep}{registered}')
    assert subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env).returncode == 0


TYPED = "beta: float = 1. # weight\nwidths: list[int] = [64]\nkind: Literal['a', 'b'] = 'a'"


class Pages:
    "Notebooks in a folder, and papermill on them"

    def __init__(self, folder, home, registered):
        self.folder, self.started = folder, []
        self.env = environment(
            home, JUPYTER_PATH=registered, PYTHONPATH=f'{ROOT}{os.pathsep}{registered}'
        )

    def make(
        self, *sources, parameters='from typing import Literal', kernel='counted', name='in.ipynb'
    ):
        cells = [
            new_code_cell(parameters, metadata={'tags': ['parameters']}),
            new_markdown_cell('text'),
            *map(new_code_cell, sources),
        ]
        write(
            new_notebook(
                cells=cells,
                metadata={
                    'kernelspec': {'name': kernel, 'display_name': kernel, 'language': 'python'}
                },
            ),
            self.folder / name,
        )

    def start(
        self, *words, output='out.ipynb', engine=('--engine', 'dlframe'), before=None, prefix=()
    ):
        words = [
            *prefix,
            sys.executable,
            '-m',
            'papermill',
            '--no-progress-bar',
            *engine,
            'in.ipynb',
            output,
            *words,
        ]
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.started.append(
            subprocess.Popen(
                [str(w) for w in words],
                cwd=self.folder,
                env=self.env,
                text=True,
                preexec_fn=lambda: (attentive(), before and before()),
                **pipes,
            )
        )
        return self.started[-1]

    def run(self, *words, **options):
        "To its end: exit status, and lines that it said"
        return end(self.start(*words, **options))

    def wait(self, name):
        "Until there is such a file"
        at = self.folder / name
        until = time.monotonic() + PATIENCE
        while not at.exists():
            assert time.monotonic() < until, name
            time.sleep(0.02)
        return at

    def read(self, name='out.ipynb'):
        "Code cells: status, and errors under it"
        cells = [
            c
            for c in json.loads((self.folder / name).read_text('utf-8'))['cells']
            if c['cell_type'] == 'code'
        ]
        return [
            (
                c['metadata']['papermill']['status'],
                [(o['ename'], o['evalue']) for o in c['outputs'] if o['output_type'] == 'error'],
            )
            for c in cells
        ]

    def names(self):
        return sorted(p.name for p in self.folder.iterdir() if p.is_file())


def end(papermill):
    try:
        said, _ = papermill.communicate(timeout=PATIENCE)
    finally:
        papermill.kill()
    return papermill.returncode, said.strip().splitlines()


@pytest.fixture
def pages(tmp_path, registered):
    for name in 'pages', 'home':
        (tmp_path / name).mkdir()
    pages = Pages(tmp_path / 'pages', tmp_path / 'home', registered)
    yield pages
    for papermill in pages.started:
        papermill.kill()  # after a test that failed


# What is refused


@pytest.mark.parametrize(
    'words, said',
    [
        (
            ['-p', 'bta', 0.1],
            "ParameterError: `parameters` must be one of 'beta', 'widths', 'kind', got 'bta'; "
            "did you mean 'beta'?",
        ),
        (
            ['-p', 'beta', 0.1, '-y', '{widths: [a]}'],
            "ParameterError: `widths` must be of type int, got 'a'",
        ),
        (['-r', 'kind', 'c'], "ParameterError: `kind` must be one of 'a', 'b', got 'c'"),
        (
            ['-p', "x=1;import os;os.system('touch PWNED');y", 1],
            "ParameterError: `parameters` must be one of 'beta', 'widths', 'kind', got "
            '"x=1;import os;os.system(\'touch PWNED\');y"',
        ),
    ],
)
def test_parameters_are_refused(words, said, pages):
    pages.make('1', parameters=TYPED)
    (pages.folder / 'out.ipynb').write_text('kept')
    before = left(pages.folder)
    status, lines = pages.run(*words)
    assert status == 1 and lines[-1] == said
    assert not any('Traceback' in line for line in lines)
    # nothing started, nothing written, nothing left behind
    assert left(pages.folder) == before


def test_a_cell_that_was_added_before_is_read_too(pages):
    pages.make('1', parameters=TYPED)
    page = json.loads((pages.folder / 'in.ipynb').read_text())
    page['cells'][2] = {
        **page['cells'][2],
        'source': "# Parameters\nbeta = __import__('os').system('touch PWNED')",
        'metadata': {'tags': ['injected-parameters']},
    }
    (pages.folder / 'in.ipynb').write_text(json.dumps(page))
    status, lines = pages.run()
    assert status == 1 and lines[-1].startswith(
        'ParameterError: `parameters` must be passed as lines `name = value`, got '
    )
    assert pages.names() == ['in.ipynb']


BASE = "base: str = 'x'\nout: str = "


@pytest.mark.parametrize(
    'default',
    [
        "f'{base}-1'",
        "base + '-1'",
        'str(base)',
        '[b for b in base]',
        "'x-1'\nout = base",
        "'x-1'\nout += base",
    ],
)
def test_a_default_that_is_computed(default, pages):
    "It would keep the value of before, so it is refused, unless nothing is passed"
    pages.make('1', parameters=BASE + default)
    status, lines = pages.run('-p', 'base', 'y')
    assert status == 1
    assert 'ParameterError: ' in lines[-1]
    assert 'must have a default of literals' in lines[-1] or 'the parameters cell' in lines[-1]
    assert pages.names() == ['in.ipynb']


def test_a_default_of_literals(pages):
    pages.make(
        'print(base, out, n)',
        parameters=BASE + "'x-' '1'\nn: list = [-1, 2*3, 1e-3, None, {'a': ()}, float('inf')]",
    )
    assert pages.run('-p', 'base', 'y')[0] == 0
    assert "y x-1 [-1, 6, 0.001, None, {'a': ()}, inf]" in (pages.folder / 'out.ipynb').read_text()


def test_without_types(pages):
    "Names are checked, values are not"
    pages.make('assert beta == "many"', parameters='beta = 1.')
    status, lines = pages.run('-p', 'bta', 1)
    assert status == 1 and lines[-1].endswith("got 'bta'; did you mean 'beta'?")
    assert pages.names() == ['in.ipynb']
    assert pages.run('-p', 'beta', 'many')[0] == 0
    assert pages.names() == ['in.ipynb', 'out.ipynb', 'started']


def test_plain_papermill_is_as_before(pages):
    "A warning only, and a name is code"
    pages.make('1')
    assert pages.run('-p', "x=1;import os;os.system('touch PWNED');y", 1, engine=())[0] == 0
    assert pages.names() == ['PWNED', 'in.ipynb', 'out.ipynb', 'started']


# Signals

ANSWER = """import signal, time
from pathlib import Path
def stop(number, frame):
    if number == signal.SIGTERM: time.sleep(1.5) # longer than a kernel outlives its papermill
    Path('saved').write_text(str(number))
    raise SystemExit(128 + number)
for number in signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP: signal.signal(number, stop)
print('working', flush=True)
Path('working').write_text('')
time.sleep(3600)"""
AFTER = "open('after', 'w')"


def stopped(name):
    return 'Stopped', f'papermill was sent {name}; the cells below did not run'


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGHUP'])
def test_signals_reach_the_cell(name, pages):
    "It saves and ends; papermill lives on, keeps the notebook and fails"
    pages.make(ANSWER, AFTER)
    papermill, number = pages.start(), getattr(signal, name)
    pages.wait('working')
    papermill.send_signal(number)
    status, _ = end(papermill)
    assert status == 1
    assert (pages.folder / 'saved').read_text() == str(int(number))
    assert pages.read() == [
        ('completed', []),
        ('failed', [('SystemExit', str(128 + number)), stopped(name)]),
        ('pending', []),
    ]
    assert 'working\\n' in (pages.folder / 'out.ipynb').read_text()
    assert not (pages.folder / 'after').exists()


def test_interrupt(pages):
    "Ctrl-C interrupts the cell, and what it has started"
    cell = """import subprocess, time
child = subprocess.Popen(['sleep', '3600'])
open('working', 'w').close()
try: time.sleep(3600)
except KeyboardInterrupt:
    print('child', child.wait())
    raise"""
    pages.make(cell, AFTER)
    papermill = pages.start()
    pages.wait('working')
    papermill.send_signal(signal.SIGINT)
    assert end(papermill)[0] == 1
    assert pages.read() == [
        ('completed', []),
        ('failed', [('KeyboardInterrupt', ''), stopped('SIGINT')]),
        ('pending', []),
    ]
    assert 'child -2\\n' in (pages.folder / 'out.ipynb').read_text()


def test_a_cell_that_ends_well_is_the_last(pages):
    "As training that is interrupted does; and the kernel alone is told, not what it has started"
    cell = """import signal, subprocess, time
from pathlib import Path
child, asked = subprocess.Popen(['sleep', '3600']), []
signal.signal(signal.SIGUSR1, lambda *args: asked.append(1))
Path('working').touch()
while not asked: time.sleep(.01)
time.sleep(.2)
print('child', child.poll())
child.kill()"""
    pages.make(cell, AFTER)
    papermill = pages.start()
    pages.wait('working')
    papermill.send_signal(signal.SIGUSR1)
    assert end(papermill)[0] == 1
    assert pages.read() == [('completed', []), ('failed', [stopped('SIGUSR1')]), ('pending', [])]
    assert 'child None\\n' in (pages.folder / 'out.ipynb').read_text()
    assert not (pages.folder / 'after').exists()


def test_a_signal_before_the_first_cell(pages):
    pages.make(AFTER, parameters=AFTER, kernel='late')
    assert pages.run()[0] == 1
    assert pages.read() == [('failed', [stopped('SIGTERM')]), ('pending', [])]
    assert pages.names() == ['in.ipynb', 'out.ipynb']


def test_what_is_ignored_stays_ignored(pages):
    "A terminal closes on `nohup papermill …`"
    pages.make('import os, signal\nos.kill(os.getppid(), signal.SIGHUP)', AFTER)
    assert pages.run(prefix=['nohup'])[0] == 0
    assert (pages.folder / 'after').exists()


# Kernels that die

SAID = """import os, signal, time
from pathlib import Path
print('before', flush=True)
# until papermill has heard it
while 'be' + 'fore' + chr(92) + 'n' not in Path('out.ipynb').read_text():
    print('.', flush=True)
    time.sleep(.1)
"""


@pytest.mark.parametrize(
    'ends, said',
    [
        (
            'os.kill(os.getpid(), signal.SIGKILL)',
            'the kernel died of SIGKILL, as it does when there is not enough memory, in cell 3',
        ),
        (
            'os.kill(os.getppid(), signal.SIGTERM); time.sleep(3600)',
            'the kernel died of SIGTERM, in cell 3',
        ),
    ],
)
def test_a_kernel_dies(ends, said, pages):
    pages.make(SAID + ends, AFTER)
    status, lines = pages.run('--autosave-cell-every', 1)
    assert status == 138 and lines[-1] == f'nbclient.exceptions.DeadKernelError: {said}'
    assert pages.read() == [
        ('completed', []),
        ('failed', [('DeadKernelError', said)]),
        ('pending', []),
    ]
    assert 'before\\n' in (pages.folder / 'out.ipynb').read_text()
    assert (
        json.loads((pages.folder / 'out.ipynb').read_text())['metadata']['papermill']['exception']
        is True
    )


def test_a_kernel_does_not_start(pages):
    pages.make('1', kernel='broken')
    status, _ = pages.run()
    (first, (error,)), *others = pages.read()
    assert status == 1
    assert first == 'failed'
    assert error[0] == 'RuntimeError'
    assert others == [('pending', [])]


# What is on disk


def test_a_reader_never_sees_half_a_notebook(pages):
    "Forty writes of megabytes, also while a cell runs, and a reader who does nothing else"
    pages.make(
        "import time\nfor i in range(8):\n    print('x'*400_000, flush=True)\n    time.sleep(.2)",
        *['1'] * 16,
        'print("end")',
    )
    papermill, reads, out = pages.start('--autosave-cell-every', 1), 0, pages.wait('out.ipynb')
    while papermill.poll() is None:
        json.loads(out.read_text('utf-8'))
        reads += 1
    assert end(papermill)[0] == 0 and reads > 50
    assert [status for status, _ in pages.read()] == ['completed'] * 19
    assert pages.names() == ['in.ipynb', 'out.ipynb', 'started']


WAIT = (
    "import time\nfrom pathlib import Path\nPath('working').touch()\nwhile not "
    "Path('go').exists(): time.sleep(.02)\nprint('went')"
)


def test_two_papermills_one_output(pages):
    "The second is refused, also under another name of the file; the first goes on"
    pages.make(WAIT)
    first = pages.start()
    pages.wait('working')
    before, at = left(pages.folder), pages.folder.resolve() / 'out.ipynb'
    status, lines = pages.run(output=pages.folder / '.' / 'out.ipynb')
    assert status == 1
    assert (
        lines[-1]
        == f'OSError: `output_path` must be a notebook that no other papermill is writing, got {at}'
    )
    assert not any('Traceback' in line for line in lines) and left(pages.folder) == before
    (pages.folder / 'go').touch()
    assert end(first)[0] == 0
    assert pages.read() == [('completed', [])] * 2
    assert 'went' in (pages.folder / 'out.ipynb').read_text()


def test_a_papermill_that_was_killed_holds_nothing(pages):
    pages.make(WAIT)
    first = pages.start()
    pages.wait('working')
    first.kill()
    end(first)
    # whole, as it was last written
    assert [status for status, _ in pages.read()] == ['completed', 'running']
    (pages.folder / 'go').touch()
    assert pages.run()[0] == 0
    assert pages.names() == ['go', 'in.ipynb', 'out.ipynb', 'started', 'working']


def test_the_same_command_twice(pages):
    """The notebook of a finished run stays; that of a failed one gives way to the same run, and to
    no other
    """
    pages.make(
        "from pathlib import Path\nassert Path('mended').exists()", parameters='beta: float = 1.'
    )
    assert pages.run('-p', 'beta', 0.1)[0] == 1

    def refused(*words, output='out.ipynb'):
        before = left(pages.folder)
        status, lines = pages.run(*words, output=output)
        # nothing started, nothing written
        assert status == 1 and left(pages.folder) == before
        return lines[-1].replace(str(pages.folder.resolve()), '')

    assert 'which is of another one (beta 0.1): choose another path' in refused('-p', 'beta', 0.2)
    assert 'which is of another one (beta 0.1)' in refused()
    (pages.folder / 'started').unlink(), (pages.folder / 'mended').touch()
    assert pages.run('-p', 'beta', 0.1)[0] == 0
    (pages.folder / 'started').unlink()
    for words in ['-p', 'beta', 0.1], ['-p', 'beta', 0.2], []:
        assert (
            refused(*words)
            == 'OSError: `output_path` must be a new file, got /out.ipynb, the notebook of a '
            'run that is finished: choose another path (and name), or move the notebook away'
        )
    assert 'must be another file than the notebook that runs' in refused(output='in.ipynb')
    (pages.folder / 'own.ipynb').write_text((pages.folder / 'in.ipynb').read_text())
    (pages.folder / 'notes.ipynb').write_text('notes')
    for own in 'own.ipynb', 'notes.ipynb':
        assert 'which papermill has not written' in refused('-p', 'beta', 0.1, output=own)
    assert pages.run('-p', 'beta', 0.2, output='other.ipynb')[0] == 0


def test_a_trial_that_is_taken_over(pages):
    "A finished notebook of the same trial is its result; another trial may not write over it"
    pages.make('print(beta)', parameters='beta: float = 1.')

    def trial(run):
        pages.env |= {'WANDB_SWEEP_ID': 's', 'WANDB_RUN_ID': run, 'WANDB_MODE': 'offline'}

    trial('a-0000')
    assert pages.run('-p', 'beta', 0.1)[0] == 0
    (pages.folder / 'started').unlink()
    before = {p: content for p, content in left(pages.folder).items()}
    status, lines = pages.run('-p', 'beta', 0.1)
    assert status == 0 and any('is finished: nothing is left to run' in line for line in lines)
    assert json.loads((pages.folder / 'out.ipynb').read_text()) == json.loads(
        before[pages.folder / 'out.ipynb']
    ) and pages.names() == ['in.ipynb', 'out.ipynb']
    trial('a-0001')
    status, lines = pages.run('-p', 'beta', 0.1)
    assert status == 1
    assert 'the notebook of a run that is finished' in lines[-1]
    assert left(pages.folder).keys() == before.keys()


def small_files():
    "No file may become larger than 100 kB: to the one who writes it the same as a full disk"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def no_privilege():
    "root too may write only where the mode of a folder lets it"
    if sys.platform == 'linux' and not os.geteuid():
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_full_disk(pages):
    """The notebook of before the cell stays, whole; the error names the path, and what else went
    wrong is said
    """
    pages.make("print('x'*1_000_000)", 'raise ValueError("lost")')
    status, lines = pages.run(before=small_files)
    at = pages.folder.resolve() / 'out.ipynb'
    assert status == 1
    assert (
        lines[-1]
        == f'OSError: `output_path` must be a notebook that can be written, got {at} (File too '
        'large)'
    )
    assert 'ValueError: lost' in lines and not any('Traceback' in line for line in lines)
    assert pages.read() == [('completed', []), ('running', []), ('pending', [])]
    assert pages.names() == ['in.ipynb', 'out.ipynb', 'started']


def test_a_folder_that_may_not_be_written(pages):
    pages.make('1')
    (pages.folder / 'shut').mkdir(mode=0o555)
    status, lines = pages.run(output='shut/out.ipynb', before=no_privilege)
    at = pages.folder.resolve() / 'shut/out.ipynb'
    assert status == 1
    assert (
        lines[-1] == f'OSError: `output_path` must be a notebook that can be written, got {at} '
        '(Permission denied)'
    )
    assert not any('Traceback' in line for line in lines) and pages.names() == ['in.ipynb']


def test_a_notebook_that_may_not_be_written(pages):
    pages.make('1')
    (pages.folder / 'out.ipynb').touch()
    (pages.folder / 'out.ipynb').chmod(0o444)
    before = left(pages.folder)
    status, lines = pages.run(before=no_privilege)
    assert status == 1
    assert lines[-1].endswith('out.ipynb (Permission denied)')
    assert left(pages.folder) == before


def test_a_folder_that_is_shut_for_a_while(pages):
    "Said, and the run goes on; what counts is that it can be written at the end"
    (pages.folder / 'runs').mkdir()
    pages.make("import os\nos.chmod('runs', 0o555)", "import os\nos.chmod('runs', 0o755)")
    status, lines = pages.run(output='runs/out.ipynb', before=no_privilege)
    assert status == 0 and sum('(Permission denied)' in line for line in lines) == 1
    assert pages.read('runs/out.ipynb') == [('completed', [])] * 3
    assert os.listdir(pages.folder / 'runs') == ['out.ipynb']
