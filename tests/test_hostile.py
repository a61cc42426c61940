"""Hostile and broken input, generated: taken and right, or refused in our words; in time, nothing
executed, no file changed
"""

import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from blind import blindfold
from experiment import PAGE, left
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.configuration import set_hypothesis_home_dir
from limits import cpu_seconds
from test_bad_input import mnist
from tree import ROOT
from tree import run as program

from dlframe.architectures import decoder, encoder
from dlframe.callbacks import Evaluate
from dlframe.evaluation import Terms
from dlframe.image_sets import check_idx, images
from dlframe.kernels import Kernels, read_kernels, write_kernels
from dlframe.loading import load
from dlframe.optimization import Optimization
from dlframe.parameter_checks import check_parameters, declaration, declared, passed, read_value
from dlframe.priors import prior
from dlframe.reruns import main, rerun
from dlframe.run import Run, Training
from dlframe.specs import build, find, override, parse, read, spec, write
from dlframe.sweeps import read_sweep
from dlframe.vae import VAE
from dlframe.validation import MissingFile, Refusal

pytestmark = pytest.mark.filterwarnings('ignore')
set_hypothesis_home_dir(tempfile.gettempdir() + '/hypothesis')

CPU = 30.0  # Seconds for one case: ten times what the slowest needed when this was written


class Cases:
    "Makes cases in a folder, and counts how they end"

    def __init__(self, folder):
        self.folder, self.ends, self.counted = folder, Counter(), False

    def end(self, call, names):
        """How one case ends: what `call()` gives and no error, or a refusal that names what it is
        about; no file has changed
        """
        before, found, error = left(self.folder), None, None
        try:
            with cpu_seconds(CPU), redirect_stdout(io.StringIO()):
                found = call()
        except (Refusal, FileNotFoundError) as e:
            error = e
            assert re.search(names, str(e)), f'{type(e).__name__}: {e}'
            assert len(str(e)) < 3000
        self.ends[type(error).__name__ if error else 'accepted'] += 1
        after = left(self.folder)
        assert after == before, {
            p for p in after.keys() | before.keys() if after.get(p) != before.get(p)
        }
        return found, error

    def __call__(self, call, good=lambda found: True, names=''):
        """What is taken is `good`; what is refused is refused by an error of ours, which names one
        of `names`
        """
        found, error = self.end(call, names)
        assert error or good(found), found

    def takes(self, call, good=lambda found: True):
        "This is right, and is taken"
        found, error = self.end(call, '')
        assert not error, f'{type(error).__name__}: {error}'
        assert good(found), found

    def refuses(self, call, names=''):
        "This is wrong, and is refused"
        found, error = self.end(call, names)
        assert error, found

    def at_least(self, accepted, refused):
        """So many ended thus: half of what was found when this was written, since other releases of
        hypothesis generate other examples
        """
        self.counted, n = True, self.ends['accepted']
        assert n >= accepted > 0, f'{n} cases were accepted: {dict(self.ends)}'
        assert self.ends.total() - n >= refused > 0, (
            f'{self.ends.total() - n} cases were refused: {dict(self.ends)}'
        )


@pytest.fixture
def case(tmp_path, record_property, monkeypatch, request):
    "In a folder of its own, where whatever is executed would leave something"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    cases, failed = Cases(tmp_path), request.session.testsfailed
    yield cases
    record_property('cases', dict(cases.ends))
    assert cases.counted or request.session.testsfailed > failed, (
        'each test says how many cases must at least be accepted, and how many refused'
    )


def each(n, **strategies):
    "Run the test's inner function on `n` generated examples, the same each time"
    how = settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    return lambda function: how(given(**strategies)(function))()


def deep(n, around=lambda inner: [inner], inner=1):
    for _ in range(n):
        inner = around(inner)
    return inner


def changed_bytes(raw):
    """Bytes like `raw` but for a few changes: flipped, cut out, cut off, put in, said twice,
    exchanged
    """
    place = st.integers(0, max(len(raw) - 1, 0))
    odd = st.sampled_from(
        [
            b'\0',
            b'\xff',
            b'\xef\xbb\xbf',
            b'{',
            b']',
            b'"',
            b'\n',
            b'&a ',
            b'*a',
            b'!!python/name:os.system ',
            b'!!binary ',
            b'9' * 30,
            b'-',
            b'e999',
            b'\t',
            b'%',
            b'null',
            b'\xc2\x85',
        ]
    )
    change = st.one_of(
        st.tuples(place, st.integers(0, 7)).map(
            lambda c: (
                lambda b: (
                    b[: c[0]] + bytes([b[c[0]] ^ 1 << c[1]]) + b[c[0] + 1 :] if c[0] < len(b) else b
                )
            )
        ),
        st.tuples(place, st.integers(1, 80)).map(lambda c: lambda b: b[: c[0]] + b[c[0] + c[1] :]),
        place.map(lambda i: lambda b: b[:i]),
        st.tuples(place, odd).map(lambda c: lambda b: b[: c[0]] + c[1] + b[c[0] :]),
        st.tuples(place, st.integers(1, 80)).map(
            lambda c: lambda b: b[: c[0]] + b[c[0] : c[0] + c[1]] * 2 + b[c[0] + c[1] :]
        ),
        st.tuples(place, odd).map(lambda c: lambda b: b[: c[0]] + c[1] + b[c[0] + len(c[1]) :]),
    )

    def all_of(changes):
        b = raw
        for c in changes:
            b = c(b)
        return b

    return st.lists(change, min_size=1, max_size=3).map(all_of)


# Parameters

odd_texts = [
    '',
    ' ',
    '\0',
    '\ud800',
    'nan',
    'Infinity',
    '-.inf',
    '1e999',
    '1e-05',
    '0x1f',
    '0b101',
    '010',
    '1_000',
    '1:30:00',
    '2026-13-45',
    '2026-01-01',
    '!!python/object/apply:os.system [touch executed]',
    '!!binary aGk=',
    '!!set {a, b}',
    '&a [*a]',
    '*b',
    '{a: &x 1, b: *x}',
    '{',
    '[1',
    '%',
    '@',
    '`',
    '? a',
    '- - -',
    '...',
    '---\n---',
    '"\\',
    '9' * 5000,
    '-' + '9' * 5000,
    '1' * 100_000,
    '1' * 50_000 + 'x',
    '[' * 300,
    '{a: ' * 500,
    '- ' * 1000,
    '1:' * 3000 + '1',
    '__import__("os").system("touch executed")',
    "'; open('executed', 'w'); '",
    '${jndi:x}',
    '../../etc',
    '\u202e',
    'é' * 300,
    'a\nb',
    '\ufeff1',
    '~',
    'null',
    'yes',
    'y',
]
odd_values = [
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -(10**5000),
    2**63,
    1e308,
    -0.0,
    True,
    False,
    None,
    b'bytes',
    {1, 2},
    1j,
    object(),
    deep(5000),
    deep(5000, lambda i: {'a': i}),
    deep(5000, lambda i: (i,)),
    [[]],
    {'': {}},
    {1: 2},
    {(1,): 2},
    range(3),
    [None] * 3,
    {'a': math.nan},
    ...,
]
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(odd_texts),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
kinds = [
    float,
    int,
    bool,
    str,
    list,
    dict,
    list[int],
    list[float],
    list[str],
    dict[str, float],
    dict[str, dict],
    dict[str, list[int]],
    tuple[int, str],
    tuple[int, ...],
    Literal['mlp', 'conv'],
    Literal[1, 2],
    Literal[True, 'a'],
    str | None,
    int | str,
    Optional[list[int]],  # noqa: UP045  this spelling, too
    Union[int, list[int], None],  # noqa: UP007  this spelling, too
    int | float,
    list[int | None],
    Any,
]


def fits(value, kind):
    "Is `value` of that type, whole numbers not being truth values?"
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind is type(None):
        return value is None
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin is None:
        return type(value) is kind
    if origin is tuple:
        return (
            type(value) is tuple
            and (args[-1] is ... or len(value) == len(args))
            and all(fits(v, args[0] if args[-1] is ... else args[i]) for i, v in enumerate(value))
        )
    if origin is list:
        return type(value) is list and all(fits(v, args[0]) for v in value)
    if origin is dict:
        return type(value) is dict and all(
            fits(k, args[0]) and fits(v, args[1]) for k, v in value.items()
        )
    return any(fits(value, a) for a in args)


def test_odd_values_for_each_type(case):
    for kind in kinds:
        for value in [*odd_texts, *odd_values]:
            case(lambda: read_value('p', value, kind), lambda found: fits(found, kind), '`p`')
    for value, kind in [
        (1.5, float),
        ('2.5', float),
        (3, int),
        ('-3', int),
        (True, bool),
        ('true', bool),
        ('text', str),
        ([1, 2], list[int]),
        ('[1, 2]', list[int]),
        ({'a': 1.0}, dict[str, float]),
        ((1, 'a'), tuple[int, str]),
        ('mlp', Literal['mlp', 'conv']),
        (None, str | None),
        ('7', int | str),
        (None, Optional[list[int]]),  # noqa: UP045  this spelling, too
    ]:
        case.takes(lambda: read_value('p', value, kind), lambda found: fits(found, kind))
    for value, kind in [
        ('a', float),
        ('nan', float),
        (2.5, int),
        (True, int),
        ('1.5', int),
        (2, bool),
        ([1], str),
        (1, list[int]),
        ([True], list[int]),
        ({'a': 'b'}, dict[str, float]),
        (('a', 2), tuple[int, str]),
        ('mlpp', Literal['mlp', 'conv']),
        ([1], str | None),
        (['a'], Optional[list[int]]),  # noqa: UP045  this spelling, too
    ]:
        case.refuses(lambda: read_value('p', value, kind), '`p`')
    case.at_least(accepted=180, refused=780)


def test_values(case):
    @each(150, kind=st.sampled_from(kinds), value=plain)
    def _(kind, value):
        case(lambda: read_value('p', value, kind), lambda found: fits(found, kind), '`p`')

    case.at_least(accepted=10, refused=60)


def test_right_values_are_taken(case):
    "What is of its type already comes out as it went in, and so does its text"

    @each(
        100,
        value=st.one_of(
            st.lists(st.integers(-(10**18), 10**18), max_size=5),
            st.dictionaries(
                st.text('abc', min_size=1), st.floats(allow_nan=False, allow_infinity=False)
            ),
            st.integers(-(10**18), 10**18),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
    )
    def _(value):
        kind = {list: list[int], dict: dict[str, float], int: int, float: float}[type(value)]
        for given_ in value, json.dumps(value):
            case.takes(
                lambda: read_value('p', given_, kind),
                lambda found: found == value and fits(found, kind),
            )
        other = {list: dict[str, float], dict: list[int], int: list[int], float: dict[str, float]}[
            type(value)
        ]
        for given_ in value, json.dumps(value):
            case.refuses(lambda: read_value('p', given_, other), '`p`')

    case.at_least(accepted=200, refused=200)  # each of the hundred, twice


def test_cells(case):
    "What was passed is declared, or refused; whatever stands in the other cells"
    cells = [
        '',
        'beta: float = 1. # weight\nz_dim: int = 8',
        '# Parameters\n',
        '# Parameters\nbeta = 0.1',
        '# Parameters\nbta = 1',
        '# Parameters\nbeta.__class__ = 1',
        '# Parameters\n(',
        '# Parameters\nbeta, z_dim = 1, 2',
        '# Parameters\nbeta[0] = 1',
        '\0',
        'beta: float',
        '(' * 300,
        '-' * 50_000 + '1',
        '1' + '+1' * 20_000,
        'x: ' + '[' * 100 + ']' * 100 + ' = 1',
        '%magic',
        'beta: float = 1.\n' + '"text"\n' * 3,
        'a = ' + '[' * 90 + ']' * 90,
        '# Parameters\nbeta = ' + '-' * 50_000 + '1',
    ]
    other = (
        st.sampled_from(cells)
        | st.text(max_size=30)
        | st.from_regex(
            r'# Parameters\n[a-z_]{1,8}(\.[a-z]{1,5})? = [0-9a-z"\[\]]{0,8}', fullmatch=True
        )
    )

    @each(
        150,
        cells=st.lists(other, max_size=5)
        | st.lists(st.sampled_from(['', *cells[1:4], '%magic', '\0']), max_size=2).map(
            lambda more: [cells[1], *more]
        ),
        values=st.fixed_dictionaries(
            {'beta': st.floats(), 'z_dim': st.integers() | st.sampled_from(['8', 8.0, '1e3'])}
        )
        | st.fixed_dictionaries({}, optional={'beta': plain, 'z_dim': plain}),
    )
    def _(cells, values):
        case(
            lambda: check_parameters(cells, values),
            lambda found: (
                {
                    n
                    for c in cells[1 + max(i for i, c in enumerate(cells) if declaration(c)) :]
                    for n in passed(c)
                }
                <= found.keys()
                and all(
                    type(v) is {'beta': float, 'z_dim': int}.get(k, type(v))
                    for k, v in found.items()
                )
            ),
        )

    declared_ = cells[1]
    for more in [], ['# Parameters\nbeta = 0.1'], ['# Parameters\nbeta = 0.1\nz_dim = 2', 'x = 1']:
        case.takes(
            lambda: check_parameters([declared_, *more], {'beta': 0.1, 'z_dim': '8'}),
            lambda found: (found['beta'], found['z_dim']) == (0.1, 8),
        )
    for more in (
        ['# Parameters\nbta = 1'],
        ['# Parameters\nbeta.__class__ = 1'],
        ['# Parameters\n('],
    ):
        case.refuses(lambda: check_parameters([declared_, *more], {'beta': 0.1}))
    for values in {'beta': 'x'}, {'z_dim': 2.5}, {'z_dim': True}:
        case.refuses(lambda: check_parameters([declared_], values), '`(beta|z_dim)`')
    case.at_least(accepted=13, refused=60)


# Specifications

# what a name must not lead to: each of these exists
commands = [
    'os.system',
    'posix.system',
    'subprocess.Popen',
    'builtins.eval',
    'builtins.exec',
    'builtins.open',
    'code.InteractiveInterpreter',
    'torch.os.system',
    'torch.sys.exit',
    'torch.sys.modules',
    'torch.hub.load',
    'torch.load',
    'torch.save',
    'torch.jit.load',
    'torch.utils.cpp_extension.load',
    'torch.utils.cpp_extension.load_inline',
    'torch.multiprocessing.Process',
    'torch.multiprocessing.spawn',
    'torch.package.PackageImporter',
    'torch.package.PackageExporter',
    'torch.serialization.pickle.loads',
    'torch.utils.data.datapipes.utils.decoder.pickle.loads',
    'torch.distributed.run.main',
    'torch.utils.collect_env.run',
    'torch.nn.functional.torch',
    'torch.nn.functional.warnings',
    'torch.nn.functional.importlib.import_module',
    'torch.nn.modules.module.functools.partial',
    'torch.nn.Module.__init__',
    'torch.nn.Module.__class__',
    'torch.nn.Module.__mro__',
    'torch.nn.Linear.__base__',
    'torch.nn.Module.__subclasses__',
    'torch.nn.Linear.forward.__globals__',
    'torch.nn.Module.__init__.__globals__.__class__',
    'torch.nn.Linear.__dict__',
    'torch.ops.aten.add',
    'torch.ops.load_library',
    'torch.float32.is_complex',
    'torch._C._jit_init',
    'torch.functional.F',
    'torch.utils.data.DataLoader',
    'torch.utils.model_zoo.load_url',
    'torch.nn.parallel.DistributedDataParallel.__init__',
    'torch.library.Library',
    'torch.fx.GraphModule',
    'torch.fx.graph_module._CodeOnlyModule',
    'torch.fx.Interpreter',
    'torch.jit.ScriptModule',
    'torch.jit.RecursiveScriptModule',
    'torch.distributed.nn.RemoteModule',
    'torch.distributed.nn.api.remote_module.RemoteModule',
    'torchvision.datasets.CIFAR10',
    'torchvision.datasets.LSUN',
    'torchvision.datasets.Cityscapes',
    'torchvision.datasets.DatasetFolder',
    'torchvision.datasets.folder.default_loader',
    'torchvision.datasets.utils.download_url',
    'torchvision.datasets.utils.extract_archive',
    'torchvision.io.write_file',
    'torchvision.extension.os.system',
    'pytorch_lightning.Trainer',
    'pytorch_lightning.trainer.trainer.os.system',
    'pytorch_lightning.cli.LightningCLI',
    'pytorch_lightning.loggers.CSVLogger',
    'dlframe.reruns.main',
    'dlframe.reruns.rerun',
    'dlframe.specs.import_module',
    'dlframe.specs.build',
    'dlframe.loading.find_folder',
    'dlframe.image_sets.fetch',
    'dlframe.checkpoints.save_whole',
    'dlframe.specs.Path',
    'dlframe.specs.UnknownName',
    'pytest.main',
    'sys.exit',
    'torch',
]


def through_our_modules():
    "Functions of other packages, by the modules of dlframe that have imported these"
    leads = {
        'os': 'system',
        'subprocess': 'run',
        'shutil': 'rmtree',
        'sys': 'exit',
        'pickle': 'loads',
        'socket': 'socket',
        'yaml': 'Loader',
        'json': 'JSONDecoder',
        'ast': 'parse',
        'pl': 'Trainer',
    }
    modules = [
        import_module(f'dlframe.{name}')
        for name in (
            'run',
            'reruns',
            'launching',
            'provenance',
            'specs',
            'loading',
            'image_sets',
            'parameter_checks',
            'files',
        )
    ]
    return [
        f'{m.__name__}.{package}.{function}'
        for m in modules
        for package, function in leads.items()
        if hasattr(m, package)
    ]


commands += through_our_modules()
# and these do not
nonsense = [
    'torch.',
    '.torch',
    'torch..nn',
    'torch.nn.',
    'Linear',
    '.',
    '..',
    '/',
    '../torch.nn.Linear',
    'torch/nn/Linear',
    'torch.nn.Linear()',
    'torch.nn.Lin-ear',
    'torch.nn.Linear;os',
    '<class>',
    "<class_''>",
    'torch.nn.Lineaŕ',
    'torch.nn.Ｌinear',
    'torch.\u202enn.Linear',
    'evil.Part',
    'torch.evil.Part',
    'dlframe.evil.Part',
    'evil.sub.Part',
    'torch.classes.load_library',
    'torch.classes.a.b',
    'torch.float32.x',
    'torch.utils.checkpoint.os.system',
    'torchvision.os.system',
    'nt.system',
    '__main__.__class__',
    '__main__.__builtins__.eval',
]
nonsense += [
    'torch.nn.Linear\0',
    '\0',
    '',
    ' ',
    'torch.nn.Linear\n',
    "<class 'os.system'>",
    "<class 'torch.os.system'>",
    "<class 'torch.nn.modules.linear.Linear' >",
    'torch.' + 'a.' * 50_000 + 'b',
    'torch' + '.nn' * 2000,
    'torch.nn.' + 'L' * 100_000,
    'a' * 10**6,
    'torch.nn.Linear.' + '__class__.' * 500 + 'x',
    'dlframe.specs.' + 'sys.modules.' * 50 + 'x',
]
evil = commands + nonsense
homes = (
    r'(dlframe|torch\.(nn|optim|distributions|utils\.data)'
    r'|torchvision\.(models|ops|transforms)|pytorch_lightning\.callbacks)\b'
)

RESOLVES = """import json, pkgutil, sys
for name in json.load(open(sys.argv[1])):
    try: pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as e: print(name, repr(e), file=sys.__stdout__)
print('all were looked up', file=sys.__stdout__)"""


def test_the_names_exist(tmp_path):
    """Or a refusal would say that there is nothing of that name; in a process of its own, since
    some of their modules do things when they are imported
    """
    assert len(commands) > 70 and len(through_our_modules()) > 5
    (tmp_path / 'names.json').write_text(json.dumps([*commands, *parts]))
    said = program(sys.executable, '-W', 'ignore', '-c', RESOLVES, tmp_path / 'names.json').stdout
    assert said.splitlines()[-1] == 'all were looked up', said
    assert [
        line
        for line in said.splitlines()
        if line.startswith(
            ('torch', 'dlframe', 'pytorch', 'os', 'sub', 'built', 'code', 'pytest', 'sys', 'posix')
        )
    ] == []


def a_class(o):
    "Is it one that experiments are made of, defined where such classes are?"
    return (
        o in (torch.float32,)
        or isinstance(o, type)
        and re.match(homes, o.__module__)
        and issubclass(
            o,
            (
                torch.nn.Module,
                torch.utils.data.Dataset,
                torch.optim.Optimizer,
                torch.distributions.Distribution,
                __import__('dlframe.specs').specs.Part,
                __import__('pytorch_lightning').Callback,
            ),
        )
        or getattr(o, '__module__', None) == 'torch.nn.functional'
        or isinstance(o, type)
        and o.__module__.startswith('torchvision.transforms.')
    )


@pytest.fixture
def traps(tmp_path):
    "Modules in the current folder that leave a file when they are imported"
    trap = "open('executed', 'w').close()\nclass Part: pass\n"
    for name in 'evil.py', 'expecttest.py', 'numba.py', 'evil_torch.py':
        (tmp_path / name).write_text(trap)
    (tmp_path / 'evilpkg').mkdir()
    (tmp_path / 'evilpkg/__init__.py').write_text(trap)


def test_evil_names(case, traps):
    for name in evil:
        for called in True, False:
            case(lambda: find(name, called=called), lambda o: '.__' not in name and a_class(o), '`')
        case.refuses(
            lambda: build(
                {'model': {'cls': name, 'command': 'touch executed', 'root': '.', 'download': True}}
            )
        )
        case.refuses(lambda: build({'model': {'cls': name, 'args': ['touch executed']}}))
        case.refuses(
            lambda: build({'model': {'cls': 'torch.nn.Sequential', 'args': [{'ref': name}]}})
        )
    for name in parts:
        case.takes(lambda: find(name), a_class)
        case.takes(
            lambda: build({'activation': {'ref': name}}), lambda found: a_class(found['activation'])
        )
    # of each name one or two are harmless to find
    case.at_least(accepted=2 * len(parts), refused=4 * len(evil))


def test_naming_a_module_imports_only_where_parts_are_defined(case, traps):
    """Some modules of torch do things when they are imported: read the command line, start a
    compiler, set flags
    """
    before = set(sys.modules)
    for name in [
        'torch.testing._internal.common_utils.TestCase',
        'torch.testing._internal.common_nn.NewModuleTest',
        'torch.utils.benchmark.examples.simple_timeit.main',
        'torch.utils.bottleneck.__main__.main',
        'torch.distributed.run.main',
        'torch.distributed.launch.main',
        'torch._inductor.compile_worker.__main__.main',
        'torch.utils.tensorboard.SummaryWriter',
        'torch.contrib._tensorboard_vis.visualize',
        'torch.onnx._internal.exporter.X',
        'torch.cuda._gpu_trace.X',
        'torchvision.prototype.X',
        'pytorch_lightning.__main__.X',
        'pytorch_lightning.demos.boring_classes.BoringModel',
        'pytorch_lightning.cli.LightningCLI',
        'torch.utils.hipify.hipify_python.hipify',
        'torch.distributed.elastic.agent.X',
        'torch.nn.evil.X',
        'evilpkg.Part',
        'torch.backends._coreml.preprocess.X',
    ]:
        case.refuses(lambda: find(name))
        case.refuses(lambda: build({'cls': name}))
    strange = {
        m
        for m in set(sys.modules) - before
        if not re.match(
            r'torch\.(nn|optim|distributions|utils\.data)\b|torchvision\b|dlframe\b|pytorch_lightning\.callbacks\b',
            m,
        )
    }
    assert not {m for m in strange if m.startswith(('torch.', 'evil', 'pytorch_lightning'))}, (
        strange
    )
    for name in (
        'torch.nn.Linear',
        'torch.optim.Adam',
        'torchvision.transforms.Resize',
        'dlframe.image_sets.Digits',
        'pytorch_lightning.callbacks.Timer',
    ):
        case.takes(lambda: find(name), a_class)
    case.at_least(accepted=5, refused=40)


parts = [
    'torch.nn.Linear',
    'torch.nn.ReLU',
    'torch.nn.Sequential',
    'torch.nn.ModuleList',
    'torch.nn.ModuleDict',
    'torch.nn.Conv2d',
    'torch.nn.Embedding',
    'torch.nn.Flatten',
    'torch.distributions.Normal',
    'torch.distributions.Categorical',
    'torch.optim.Adam',
    'dlframe.image_sets.Digits',
    'dlframe.image_sets.TorchvisionImages',
    'dlframe.architectures.MLP',
    'dlframe.vae.VAE',
    'dlframe.callbacks.Evaluate',
    'dlframe.evaluation.Terms',
    'dlframe.run.Run',
    'dlframe.optimization.Optimization',
    'dlframe.priors.MixturePrior',
    'dlframe.loggers.WandbLogger',
    'torch.utils.data.TensorDataset',
    'torch.utils.data.Subset',
    'pytorch_lightning.callbacks.Timer',
    'pytorch_lightning.callbacks.EarlyStopping',
    'torchvision.transforms.Compose',
    'torchvision.transforms.Resize',
    'torch.nn.DataParallel',
    'torch.nn.MultiheadAttention',
    'torch.nn.LSTM',
]
names = st.sampled_from(parts)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        [
            '',
            'a.b',
            '\0',
            10**30,
            -(10**30),
            10**18,
            'é',
            '__class__',
            'valid',
            '1 epoch',
            [8],
            [-1],
        ]
    )
)
keys = st.sampled_from(
    [
        'args',
        'in_features',
        'out_features',
        'modules',
        'normalized_shape',
        'num_embeddings',
        'embedding_dim',
        'in_shape',
        'widths',
        'activation',
        'name',
        'root',
        'options',
        'binarize',
        'valid',
        'encoder',
        'decoder',
        'prior',
        'beta',
        'evaluator',
        'split',
        'every',
        'loc',
        'scale',
        'logits',
        'params',
        'model',
        'data',
        'optimization',
        'train_for',
        'kernel_size',
        'in_channels',
        'out_channels',
        'embed_dim',
        'num_heads',
        'input_size',
        'hidden_size',
        'dataset',
        'indices',
        'tensors',
        'transforms',
        'size',
        'self',
        'cls',
        '__class__',
        '__init__',
        'a.b',
        '',
        '\0',
        '0',
        'dim',
        'module',
        'duration',
        'monitor',
        'validate_args',
        'probs',
        'lr',
        'seed',
    ]
)
specs = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=4),
        st.builds(
            lambda c, d: {'cls': c, **d},
            names | st.sampled_from(evil[:40]),
            st.dictionaries(keys, inner, max_size=5),
        ),
        st.builds(lambda c: {'cls': c}, names),
        st.builds(
            lambda to: {'same': to},
            st.sampled_from(['', 'model', 'model.encoder', '0', 3, None, []]),
        ),
        st.builds(lambda to: {'ref': to}, names | st.sampled_from([*evil[:40], 3, None, {}])),
    ),
    max_leaves=10,
)


def built(found):
    "No description is left in it"
    if isinstance(found, dict):
        return 'cls' not in found and all(map(built, found.values()))
    return all(map(built, found)) if isinstance(found, list) else True


def test_specifications(case, traps):
    @each(300, s=specs)
    def _(s):
        case(lambda: build(s), built)

    linear = {'cls': 'torch.nn.Linear', 'in_features': 2, 'out_features': 3}
    for right, good in [
        (linear, lambda m: isinstance(m, torch.nn.Linear) and m.weight.shape == (3, 2)),
        (
            {'model': linear, 'seed': 3},
            lambda d: isinstance(d['model'], torch.nn.Linear) and d['seed'] == 3,
        ),
        ({'a': linear, 'b': {'same': 'a'}}, lambda d: d['a'] is d['b']),
        ([linear, None], lambda found: isinstance(found[0], torch.nn.Linear)),
        (
            {'cls': 'torch.nn.Sequential', 'args': [linear, {'cls': 'torch.nn.ReLU'}]},
            lambda m: len(m) == 2 and isinstance(m[1], torch.nn.ReLU),
        ),
        (
            {'cls': 'dlframe.priors.MixturePrior', 'event_shape': 2, 'components': 3},
            lambda prior: prior().log_prob(torch.zeros(2)).isfinite().all(),
        ),
        ({'activation': {'ref': 'torch.nn.ReLU'}}, lambda d: d['activation'] is torch.nn.ReLU),
    ]:
        case.takes(lambda: build(right), good)
    for wrong in [
        {'cls': 'torch.nn.Linear'},
        {**linear, 'in_features': 'a'},
        {**linear, 'other': 1},
        {'same': 'a'},
        {'a': {'same': 'b'}},
        {'cls': 'torch.nn.Linaer'},
        {'cls': 3},
        {'ref': 'os.system'},
    ]:
        case.refuses(lambda: build(wrong))
    case.at_least(accepted=50, refused=90)


def test_paths(case):
    "Changes by path, to whatever stands there"

    words = keys | st.sampled_from(['0', '1', '7', '²', '-1', '٣', 'model', 'x', 'same'])
    odd = st.sampled_from([3, None, '', '.', '..', '__', '\0', 'a' * 100_000, '.' * 20_000])
    paths = st.lists(words, min_size=1, max_size=4).map('.'.join) | odd

    def with_path(s):
        "A specification, and a path that is in it or anything else"
        return st.tuples(st.just(s), paths | st.sampled_from(list(s)))

    dictionaries = st.dictionaries(keys, specs, min_size=1, max_size=3)

    @each(200, made=dictionaries.flatmap(with_path), value=leaves)
    def _(made, value):
        s, path = made
        before = repr(s)
        case(lambda: override(s, {path: value}), lambda found: isinstance(found, dict))
        assert repr(s) == before

    for s, path, changed in [
        ({'a': {'b': 1}}, 'a.b', {'a': {'b': 2}}),
        ({'a': [1, {'b': 1}]}, 'a.1.b', {'a': [1, {'b': 2}]}),
        ({'a': [1, 1]}, 'a.0', {'a': [2, 1]}),
        ({'a': 1}, 'a', {'a': 2}),
    ]:
        case.takes(lambda: override(s, {path: 2}), lambda found: found == changed)
    for path in 'b', 'a.b.c', '', '.', '.a':
        case.refuses(lambda: override({'a': {'b': 1}}, {path: 2}))
    case.at_least(accepted=20, refused=95)


def test_arguments_in_a_row(case):
    for args in 3, 'ab', {}, None, {'cls': 'torch.nn.ReLU'}:
        case.refuses(
            lambda: build({'cls': 'torch.nn.Sequential', 'args': args}), '`args` must be a list'
        )
    for args in [], [{'cls': 'torch.nn.ReLU'}]:
        case.takes(
            lambda: build({'cls': 'torch.nn.Sequential', 'args': args}),
            lambda found: len(found) == len(args),
        )
    case.at_least(accepted=2, refused=5)


def test_places_in_a_list(case):
    for place in '²', '٣', '-1', '1', '00', '1_0', ' 0', '9' * 5000, '':
        case(
            lambda: override({'a': [5]}, {f'a.{place}': 2}), lambda found: found == {'a': [2]}, '`'
        )
    case.takes(lambda: override({'a': [5]}, {'a.0': 2}), lambda found: found == {'a': [2]})
    case.at_least(accepted=1, refused=8)


def test_circles_and_depths(case):
    around, circle = {'a': {'same': 'b'}, 'b': {'same': 'a'}}, []
    circle.append(circle)
    loop = {'x': 1}
    loop['loop'] = loop
    for path in 'a.c', 'b.x', 'a', 'a.same':
        case(
            lambda: override(around, {path: 1}),
            lambda found: path in ('a', 'a.same') and found['a'] in (1, {'same': 1}),
        )
    case.takes(lambda: override(around, {'a': 1}), lambda changed: changed['a'] == 1)
    for path in 'a.c', 'b.x', 'a.same':
        case.refuses(lambda: override(around, {path: 1}))
    for to in 'a', 'a.b', '', 'self':
        case.refuses(lambda: build({'a': {'same': to}}), 'same')
    for nested in [
        deep(n, f)
        for n in (900, 3000, 20_000)
        for f in (
            lambda i: [i],
            lambda i: {'a': i},
            lambda i: {'cls': 'torch.nn.Sequential', 'args': [i]},
        )
    ] + [circle, loop]:
        for do in (
            build,
            spec,
            lambda s: override({'s': s}, {'s': 1}),
            lambda s: override({'s': s}, {'x': 1}),
            lambda s: find(s),
            lambda s: build({'cls': 'torch.nn.Linear', 'in_features': s, 'out_features': 2}),
            lambda s: Run(s, '1 step'),
        ):
            case(lambda: do(nested))
    shallow = deep(20)
    for do in build, spec, lambda s: override({'s': 1}, {'s': s})['s']:
        case.takes(lambda: do(shallow), lambda found: found == shallow)
    case.at_least(accepted=5, refused=40)


def test_what_is_written_can_be_read(tmp_path, record_property):
    n = 0

    @each(
        200,
        s=st.dictionaries(
            st.text(),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False)
                | st.text()
                | st.sampled_from([t for t in odd_texts if len(t) < 5000]),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=8,
            ),
        ),
    )
    def _(s):
        nonlocal n
        write(s, tmp_path / 's.json')
        assert read(tmp_path / 's.json') == s and os.listdir(tmp_path) == ['s.json']
        n += 1

    assert n == 200  # all of them
    for damaged in '{"a": 1', '[1]', '', '{"a": 1, "a": 2}':
        (tmp_path / 's.json').write_text(damaged)
        with pytest.raises(Refusal):
            read(tmp_path / 's.json')
    record_property('cases', {'accepted': n})


def test_records_of_odd_objects(case):
    @each(
        60,
        o=plain
        | st.sampled_from(
            [
                object(),
                {1: 2},
                {'cls': 1},
                {'same': 1},
                {(): 1},
                b'x',
                {1},
                1j,
                torch.nn.ReLU(),
                torch.ones(2),
                torch.float32,
                print,
                os.system,
                type,
                type(None),
                len.__self__,
                Path('a'),
                range(3),
                Ellipsis,
            ]
        ),
    )
    def _(o):
        case(lambda: spec({'a': [o]}), lambda found: json.dumps(found) is not None)

    for o in None, True, 3, 1.5, 'text', [1], {'a': [1]}:
        case.takes(lambda: spec({'a': [o]}), lambda found: found == {'a': [o]})
    for o in object(), {1: 2}, {'cls': 1}, {1}, 1j:
        case.refuses(lambda: spec({'a': [o]}))
    case.at_least(accepted=25, refused=10)


# A run, and what can happen to its files


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The files of a small run"
    home = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('RUNS_ROOT', str(home / 'runs'))
        m.setenv('DLFRAME_PROGRESS', 'lines')
        data = images('digits')
        model = VAE(
            encoder('mlp', data.shape, 2, [4]),
            decoder('mlp', 2, data.shape, [4]),
            prior('standard_normal', 2),
        )
        with redirect_stdout(io.StringIO()):
            folder = (
                Run(
                    Optimization(model, data, batch_size=64),
                    '3 steps',
                    evaluations=[Evaluate(Terms('valid'))],
                    name='first',
                )
                .fit()
                .folder
            )
    # time and machine would make other cases each time
    write({**read(folder / 'manifest.json'), 'made': {}}, folder / 'manifest.json')
    # which would save the reader: as from a stranger
    for name in 'SHA256SUMS', 'checkpoints/previous.ckpt':
        (folder / name).unlink()
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    "The folder of the run, and where it would train; it does not"
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path / 'runs'))
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr(Run, 'fit', lambda self: self)
    monkeypatch.setattr(Training, 'execute', lambda self: self.run)

    def back(folder=tmp_path / 'runs/first'):
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in trained.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    back.folder = back()
    return back


LAST, WEIGHTS = 'checkpoints/last.ckpt', 'checkpoints/model.safetensors'


def untouched(case, run):
    "The run as it was written is read, loaded, resumed and run again"
    folder = run()
    case.takes(lambda: read(folder / 'manifest.json'), lambda found: isinstance(found, dict))
    case.takes(lambda: load(folder), finite)
    case.takes(lambda: Run.resume(folder, '9 steps'), a_run)
    case.takes(lambda: rerun(read(folder / 'manifest.json')), a_run)


def a_run(run):
    return (
        isinstance(run, Run)
        and not run.folder.is_relative_to('/etc')
        and run.folder.parent.name == 'runs'
    )


def finite(loaded):
    return all(p.dtype.is_floating_point for p in loaded.model.parameters()) and isinstance(
        loaded.manifest, dict
    )


def manifests(case, folder, content):
    "A manifest with this content: read, run again, load, resume"
    file = folder / 'manifest.json'
    file.write_bytes(content)
    names = re.escape(str(folder)) + '|`'
    case(lambda: read(file), lambda found: isinstance(found, dict), re.escape(str(file)))
    case(lambda: rerun(read(file)), a_run, names)
    case(lambda: load(folder), finite, names)
    case(lambda: Run.resume(folder, '9 steps'), a_run, names)


def test_manifests_with_changed_bytes(case, run, trained):
    @each(60, content=changed_bytes(trained[Path('manifest.json')]))
    def _(content):
        manifests(case, run.folder, content)

    untouched(case, run)
    case.at_least(accepted=12, refused=110)


def laughs(n, merge=False):
    lines = ['l0: &l0 {a: 1, b: 2}' if merge else 'l0: &l0 [lol, lol]']
    for i in range(1, n):
        lines.append(
            f'l{i}: &l{i} {{<<: [{", ".join([f"*l{i - 1}"] * 9)}], k{i}: 1}}'
            if merge
            else f'l{i}: &l{i} [{", ".join([f"*l{i - 1}"] * 9)}]'
        )
    return '\n'.join(lines).encode()


def test_manifests_of_odd_kinds(case, run, trained, monkeypatch):
    text = trained[Path('manifest.json')].decode()
    for content in [
        b'',
        b'\0',
        b'{}',
        b'[]',
        b'3',
        b'null',
        b'""',
        b'\xff\xfe',
        b'\xef\xbb\xbf' + text.encode(),
        text.encode('utf-16'),
        text.encode('utf-32'),
        text.encode('latin-1', 'replace') + b'\xe9',
        text.encode() * 2,
        text[:-3].encode(),
        b'%PDF-1.4',
        b'\x1f\x8b\x08' + bytes(50),
        b'PK\x03\x04' + bytes(50),
        laughs(12),
        laughs(12, True),
        laughs(30),
        b'a: &a [*a]',
        b'a: &a {b: *a}',
        b'&a {run: *a, model: *a}',
        b'run: &r {cls: dlframe.run.Run, optimization: *r}',
        b'[' * 100_000,
        b'{"a":' * 100_000,
        b'- ' * 50_000,
        b'a: ' * 5000,
        b'run: ' + b'9' * 5000,
        b'run: {x: ' + b'1' * 100_000 + b'x}',
        b'run: ' + b'1:' * 20_000 + b'1',
        b'!!python/object/apply:os.system [touch executed]',
        b'run: !!python/object/new:os.system [touch executed]',
        b'run: !!python/name:os.system',
        b'run: !!python/module:os',
        b'run: !!python/object/apply:subprocess.Popen [[touch, executed]]',
        b"!<tag:yaml.org,2002:python/object/apply:builtins.exec> [\"open('executed', 'w')\"]",
        b'run: !!binary aGk=',
        b'run: !!set {a, b}',
        b'run: !!omap [a: 1]',
        b'run: !!timestamp 2026-01-01',
        b'run: 2026-13-45',
        b'run: 2026-01-01',
        b'run: !local x',
        b'%TAG ! tag:evil,2026:\n---\nrun: !x 1',
        b'--- {}\n--- {}',
        b'run: {? [1]: 2}',
        b'? {a: 1}\n: 2',
        b'1: 2',
        b'null: 2',
        b'run: {1: 2, cls: dlframe.run.Run}',
        b'.nan: 1',
        b'run: {cls: torch.os.system, command: touch executed}',
        b'{"run": {"cls": "dlframe.run.Run", "optimization": {"cls": "torch.hub.load"}}}',
    ]:
        manifests(case, run.folder, content)
    untouched(case, run)
    case.at_least(accepted=10, refused=100)


def test_yaml_that_is_no_data(case, run):
    """Other types than those of JSON, keys that are there twice, and what would be too much written
    out
    """
    for content in [
        laughs(12),
        laughs(30),
        laughs(12, True),
        laughs(8, True),
        b'a: &a [*a]',
        b'a: &a {b: *a}',
        b'a: !!binary aGk=',
        b'a: !!set {b, c}',
        b'a: !!omap [b: 1]',
        b'a: !!pairs [b: 1]',
        b'a: !!timestamp 2026-01-01',
        b'a: !!python/tuple [1]',
        b'a: 1\na: 2',
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "a": 1}}',
        b'a: ' + b'9' * 5000,
    ]:
        file = run.folder / 'manifest.json'
        file.write_bytes(content)
        # which PyYAML makes harmless from 6.0.4 on: each key once
        merged = b'<<' in content
        case(
            lambda: read(file),
            lambda found: merged and max(map(len, found.values())) <= 13,
            re.escape(str(file)),
        )
        file.write_bytes(
            content
            + b'\nrun: {cls: dlframe.run.Run, optimization: {cls: torch.nn.Sequential, args: *l7}}'
        )
        for do in lambda: rerun(read(file)), lambda: load(run.folder):
            case.refuses(do)
    for content in [
        b'a: &a [1, 2]\nb: *a',
        b'a: {b: 1}',
        b'a: 1\nb: null',
        b'{"a": [1.5, "x", true]}',
    ]:
        file.write_bytes(content)
        case.takes(
            lambda: read(file),
            lambda found: (
                found == {'a': [1, 2], 'b': [1, 2]}
                if b'&a' in content
                else found['a'] in ({'b': 1}, 1, [1.5, 'x', True])
            ),
        )
    untouched(case, run)
    case.at_least(accepted=8, refused=40)


def replaced(manifest, path, value):
    manifest = json.loads(manifest)
    *lead, last = path
    node = manifest
    for k in lead:
        node = node[k]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return json.dumps(manifest).encode()


def paths(node, path=()):
    "All places in nested data"
    if path:
        yield path
    if isinstance(node, (dict, list)):
        for k, v in node.items() if isinstance(node, dict) else enumerate(node):
            yield from paths(v, (*path, k))


def test_manifests_with_other_values(case, run, trained):
    "Each place holds something that does not belong there, or nothing"
    raw = trained[Path('manifest.json')]
    places = [p for p in paths(json.loads(raw)) if p[0] != 'made']

    @each(
        120,
        path=st.sampled_from(places),
        value=leaves
        | st.sampled_from(
            [
                KeyError,
                [],
                {},
                [1],
                {'a': 1},
                {'cls': 'os.system'},
                {'same': 'run'},
                {'same': 'model'},
                {'ref': 'torch.nn.ReLU'},
                '../../escaped',
                '/etc/passwd',
                'x' * 5000,
                'a\nb',
                10**400,
                '\ud800',
                math.inf,
                math.nan,
            ]
        ),
    )
    def _(path, value):
        manifests(case, run.folder, replaced(raw, path, value))

    untouched(case, run)
    case.at_least(accepted=100, refused=140)


def test_manifests_without_a_model(case, run, trained):
    for value in (
        KeyError,
        None,
        3,
        [],
        {'a': 1},
        {'cls': 'dlframe.image_sets.Digits'},
        {'ref': 'torch.nn.ReLU'},
    ):
        (run.folder / 'manifest.json').write_bytes(
            replaced(trained[Path('manifest.json')], ('model',), value)
        )
        case.refuses(lambda: load(run.folder), '`model` must be described')
    untouched(case, run)
    case.at_least(accepted=4, refused=7)


def test_command_line_with_a_changed_manifest(case, run, trained):
    "`dlframe-run` ends with one line"

    def command():
        try:
            return main([str(run.folder / 'manifest.json')])
        except SystemExit as e:
            said, error = str(e.code), e.__cause__
        assert said == f'dlframe-run: {error}'
        raise error

    @each(40, content=changed_bytes(trained[Path('manifest.json')]))
    def _(content):
        (run.folder / 'manifest.json').write_bytes(content)
        case(command)

    run()
    case.takes(command)
    (run.folder / 'manifest.json').write_bytes(b'{"run": 3}')
    case.refuses(command)
    # whether a changed byte spoils a manifest depends on its dates and names; the unchanged one is
    # taken
    case.at_least(accepted=1, refused=20)


# Checkpoints


class Touch:
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return self.how


payloads = [
    (os.system, ('touch executed',)),
    (exec, ("open('executed', 'w')",)),
    (eval, ("open('executed', 'w')",)),
    (open, ('executed', 'w')),
    (Path.touch, (Path('executed'),)),
    (__import__('subprocess').Popen, (['touch', 'executed'],)),
    (getattr, (os, 'getcwd')),
    (torch.load, ('executed',)),
    (torch.hub.load, ('.', 'executed')),
    (torch.save, ({}, 'executed')),
    (torch.nn.Linear, (2, 2)),
    (os.mkdir, ('executed',)),
    (map, (open, ['executed'])),
    (__import__('importlib').import_module, ('evil',)),
    (torch.serialization.add_safe_globals, ([],)),
]


def as_zip(saved, **extra):
    "What `torch.save` writes"
    file = io.BytesIO()
    torch.save(saved, file)
    return file.getvalue()


def with_pickle(raw, content):
    "A checkpoint whose `data.pkl` is another"
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, 'w') as new:
        for item in old.infolist():
            new.writestr(
                item.filename, content if item.filename.endswith('data.pkl') else old.read(item)
            )
    return out.getvalue()


def evil_checkpoints(raw, good):
    for how in payloads:
        for protocol in 2, 4:
            try:
                text = pickle.dumps(Touch(how), protocol)
            except Exception:
                continue
            yield text  # a bare pickle
            yield with_pickle(raw, text)
        for saved in (
            {**good, 'counters': Touch(how)},
            {**good, 'state_dict': {'model.x': Touch(how)}},
            {**good, Touch(how): 1},
            [Touch(how)],
        ):
            with suppress(Exception):
                yield as_zip(saved)
    yield from [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"cbuiltins\nexec\n(Vopen('executed','w')\ntR.",
        b"(S'touch executed'\nios\nsystem\n.",
        with_pickle(raw, b"cos\nsystem\n(S'touch executed'\ntR."),
        with_pickle(raw, b'ctorch.nn.modules.module\nModule\n)\x81.'),
        with_pickle(raw, b''),
        with_pickle(raw, b'.'),
        with_pickle(raw, b'\x80\x02}'),
        with_pickle(raw, b'\x80\x02' + b'(' * 100_000 + b'.'),
        with_pickle(raw, b'\x80\x02]' + b']' * 50_000 + b'a' * 50_000 + b'.'),
        with_pickle(raw, b'\x80\x04\x8e' + b'\xff' * 8 + b'.'),
        with_pickle(raw, b'\x80\x02X\xff\xff\xff\x7fabc.'),
        with_pickle(raw, b'\x80\x02ccollections\nOrderedDict\nNR.'),
    ]


def checkpoints(case, folder, name, content, which=None):
    "A checkpoint, or weights, with this content: load and resume"
    for file in LAST, WEIGHTS:
        (folder / file).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    case(lambda: load(folder), finite, re.escape(str(folder / name)) if which is None else which)
    if name == LAST:
        case(
            lambda: Run.resume(folder, '9 steps'),
            a_run,
            re.escape(str(folder / name)) + '|`train_for`' if which is None else which,
        )


@pytest.fixture
def good(trained):
    return torch.load(io.BytesIO(trained[Path(LAST)]), weights_only=True)


def test_checkpoints_that_would_execute(case, run, trained, good, traps):
    for content in evil_checkpoints(trained[Path(LAST)], good):
        for name in LAST, WEIGHTS:
            where = re.escape(str(run.folder / name))
            for file in LAST, WEIGHTS:
                (run.folder / file).unlink(missing_ok=True)
            (run.folder / name).write_bytes(content)
            case.refuses(lambda: load(run.folder), where)
            if name == LAST:
                case.refuses(lambda: Run.resume(run.folder, '9 steps'), where)
    untouched(case, run)
    case.at_least(accepted=4, refused=180)


def test_checkpoints_that_grow(case, run, good):
    "A small file that fills the memory: compressed, or the same bytes under many names"

    def packed(how, *records):
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w', how) as file:
            for name, content in records:
                file.writestr(f'archive/{name}', content)
        return out.getvalue()

    grown = as_zip(
        {**good, 'state_dict': {**good['state_dict'], 'model.zeros': torch.zeros(10**7)}}
    )
    with zipfile.ZipFile(io.BytesIO(grown)) as file:
        small = packed(
            zipfile.ZIP_DEFLATED,
            *((i.filename.split('/', 1)[1], file.read(i)) for i in file.infolist()),
        )
    assert len(small) < len(grown) / 20
    for content in (
        small,
        packed(
            zipfile.ZIP_DEFLATED,
            ('data.pkl', b'\x80\x02' + b'N0' * 10**7 + b'N.'),
            ('version', b'3\n'),
            ('byteorder', b'little'),
        ),
    ):
        (run.folder / WEIGHTS).unlink(missing_ok=True)
        (run.folder / LAST).write_bytes(content)
        for do in load, lambda folder: Run.resume(folder, '9 steps'):
            case.refuses(
                lambda: do(run.folder),
                'last.ckpt must be a checkpoint of plain data and tensors: more would come out '
                'of it than it is long',
            )
    untouched(case, run)
    (run.folder / WEIGHTS).unlink()
    # long, and no longer than it is
    (run.folder / LAST).write_bytes(as_zip({**good, 'more': torch.zeros(10**5)}))
    case.takes(lambda: load(run.folder), finite)
    case.at_least(accepted=5, refused=4)


def test_checkpoints_with_changed_bytes(case, run, trained):
    for name in LAST, WEIGHTS:
        raw = trained[Path(name)]
        head = raw[: len(raw) if name == LAST else 8 + struct.unpack('<Q', raw[:8])[0]]
        for content in [
            b'',
            b'\0',
            b'text',
            b'<html>404 Not Found</html>',
            b'\x80',
            raw[:1],
            raw[:100],
            raw[: len(raw) // 2],
            raw[:-1],
            raw[:-30],
            raw + b'\0',
            raw * 2,
            raw[1:],
            bytes(len(raw)),
            b'PK\x03\x04',
            b'\x1f\x8b\x08',
        ]:
            checkpoints(case, run.folder, name, content)

        @each(40, content=changed_bytes(head))
        def _(content):
            checkpoints(case, run.folder, name, content + raw[len(head) :])

    untouched(case, run)
    case.at_least(accepted=8, refused=80)


def otherwise(good, path, value):
    "A checkpoint with something else at a path, or without it"
    changed = torch.load(io.BytesIO(as_zip(good)), weights_only=True)
    node = changed
    for k in path[:-1]:
        node = node[k]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return as_zip(changed)


def test_checkpoints_that_hold_something_else(case, run, good):
    "Whole files, with parts missing or of another kind"
    places = [p for p in paths(good) if len(p) < 4]
    other = [
        KeyError,
        None,
        3,
        -1,
        'text',
        [],
        {},
        [1],
        {'a': 1},
        torch.ones(3),
        torch.full((1,), math.nan),
        math.inf,
        -(10**30),
    ]

    @each(
        90,
        path=st.sampled_from([p for p in places if len(p) == 1]) | st.sampled_from(places),
        value=st.sampled_from(other),
    )
    def _(path, value):
        checkpoints(case, run.folder, LAST, otherwise(good, path, value))

    for whole in (
        None,
        3,
        [],
        {},
        torch.ones(3),
        'text',
        {'state_dict': None},
        {'state_dict': []},
        {'state_dict': {1: 2}},
        {'state_dict': {'model.x': 3}},
        list(good.items()),
    ):
        checkpoints(case, run.folder, LAST, as_zip(whole))
    for name in LAST, WEIGHTS:
        run()
        (run.folder / ({LAST, WEIGHTS} - {name}).pop()).unlink()
        case.takes(lambda: load(run.folder), finite)
    run()
    case.takes(lambda: Run.resume(run.folder, '9 steps'), a_run)
    (run.folder / WEIGHTS).unlink()
    for whole in None, [], {}, 'text', {'state_dict': []}:
        (run.folder / LAST).write_bytes(as_zip(whole))
        case.refuses(lambda: load(run.folder), re.escape(str(run.folder / LAST)))
    case.at_least(accepted=80, refused=20)


def test_going_on_with_weights_of_another_model(case, run, good):
    """It is said before the manifest is written, and before the weights of a finished run are taken
    away
    """
    state = good['state_dict']
    first = next(k for k in state if k.startswith('model.'))
    for other in [
        {k: v for k, v in state.items() if k != first},
        {**state, first: state[first][:1]},
        {**state, 'model.other': torch.ones(2)},
        {**state, first: 'text'},
        {},
    ]:
        (run.folder / LAST).write_bytes(as_zip({**good, 'state_dict': other}))
        case.refuses(
            lambda: Run.resume(run.folder, '9 steps'),
            re.escape(str(run.folder / LAST)) + ' must hold the weights of the model',
        )
    for same in state, {k: v.clone() for k, v in state.items()}:
        (run.folder / LAST).write_bytes(as_zip({**good, 'state_dict': same}))
        case.takes(lambda: Run.resume(run.folder, '9 steps'), a_run)
    case.at_least(accepted=2, refused=5)


def test_going_on_from_something_else(trained, run, good, monkeypatch, record_property, tmp_path):
    """Lightning takes it from there: what it cannot use is refused before the first step, and the
    file is named
    """
    monkeypatch.undo()
    monkeypatch.setenv('RUNS_ROOT', str(tmp_path / 'runs'))
    monkeypatch.setenv('DLFRAME_PROGRESS', 'lines')
    ends = Counter()
    places = [
        p
        for p in paths(good)
        if len(p) < 3 and p[0] not in ('state_dict', 'counters', 'hyper_parameters')
    ]

    @each(
        30,
        path=st.sampled_from(places),
        value=st.sampled_from([KeyError, None, 'text', [], {}, {'a': 1}, torch.ones(3)]),
    )
    def _(path, value):
        (run() / LAST).write_bytes(otherwise(good, path, value))
        try:
            with cpu_seconds(CPU), redirect_stdout(io.StringIO()):
                resumed = Run.resume(run.folder, '4 steps')
        except Refusal as e:
            assert str(run.folder / LAST) in str(e), (path, value, e)
            ends[type(e).__name__] += 1
        else:
            assert resumed.optimization.counters['steps'] == 4, (path, value)
            ends['accepted'] += 1

    record_property('cases', dict(ends))
    run()
    with redirect_stdout(io.StringIO()):
        assert Run.resume(run.folder, '4 steps').optimization.counters['steps'] == 4
    # half of those found when this was written
    assert ends['accepted'] >= 8 and ends.total() - ends['accepted'] >= 6, ends


def headed(header, data=b'', length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def test_weights_with_other_headers(case, run, trained):
    raw = trained[Path(WEIGHTS)]
    n = struct.unpack('<Q', raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + n]), raw[8 + n :]
    names = [k for k in header if k != '__metadata__']
    first, second = names[:2]
    for length in 0, 1, n - 1, n + 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, len(raw):
        checkpoints(case, run.folder, WEIGHTS, headed(raw[8 : 8 + n], data, length))
    for change in [
        {'shape': [10**9, 10**9]},
        {'shape': [-1]},
        {'shape': []},
        {'shape': 'x'},
        {'shape': [2**64]},
        {'dtype': 'F16'},
        {'dtype': 'I64'},
        {'dtype': 'X'},
        {'dtype': None},
        {'data_offsets': [0, 0]},
        {'data_offsets': [0, 2**62]},
        {'data_offsets': [-1, 4]},
        {'data_offsets': [9, 3]},
        {'data_offsets': [0]},
        {'data_offsets': None},
        {'data_offsets': header[second]['data_offsets']},
        {'data_offsets': [len(data), len(data) + 4]},
        {'shape': header[first]['shape'][::-1]},
        {'extra': 1},
    ]:
        checkpoints(
            case, run.folder, WEIGHTS, headed({**header, first: {**header[first], **change}}, data)
        )
    for whole in [
        {},
        [],
        3,
        None,
        {'__metadata__': {'a': 'b'}},
        {'__metadata__': {'a': 1}},
        {first: header[first]},
        {**header, 'other': header[first]},
        {**header, '../../x': header[first]},
        {k: header[k] for k in names[1:]},
        {k + 'x': v for k, v in header.items()},
    ]:
        checkpoints(case, run.folder, WEIGHTS, headed(whole, data))
    tensors = safetensors.torch.load(raw)
    for change in [
        {first: tensors[first].double()},
        {first: tensors[first].half()},
        {first: tensors[first].long()},
        {first: tensors[first].bool()},
        {first: tensors[first][..., None]},
        {first: tensors[first][:1]},
        {first: torch.zeros(0)},
        {first: tensors[first] * math.nan},
        {'more': torch.ones(2)},
    ]:
        checkpoints(case, run.folder, WEIGHTS, safetensors.torch.save({**tensors, **change}))
    untouched(case, run)
    (run.folder / LAST).unlink()
    (run.folder / WEIGHTS).write_bytes(safetensors.torch.save(dict(reversed(tensors.items()))))
    case.takes(lambda: load(run.folder), finite)
    case.at_least(accepted=8, refused=20)


def test_metrics_with_changed_bytes(case, run, trained):
    raw, file = trained[Path('metrics.csv')], run.folder / 'metrics.csv'

    @each(50, content=changed_bytes(raw))
    def _(content):
        file.write_bytes(content)
        case(lambda: load(run.folder), finite, re.escape(str(file)))

    for content in [
        b'',
        b'\0',
        b'\n',
        b'name,value\n',
        b'a,b,c\n1,2,3\n',
        b'\xff\xfe',
        raw.replace(b'steps', b'stpes'),
        raw.replace(b',', b';'),
        raw + raw,
        raw + b'"open\n',
        raw + b'x,1e999,1,1,1,1\n',
        raw + b'x,1,nan,1,1,1\n',
        raw + b'x,1,1e300,1,1,1\n',
        raw + b',,,,,,,,,\n',
        raw + b'x\n',
        raw + b'"' + b'x' * 200_000 + b'",1,1,1,1,1\n',
    ]:
        file.write_bytes(content)
        case(lambda: load(run.folder), finite, re.escape(str(file)))
    for content in raw, raw + raw.splitlines(keepends=True)[-1]:
        file.write_bytes(content)
        case.takes(lambda: load(run.folder), finite)
    for content in b'a,b,c\n1,2,3\n', b'\xff\xfe', raw + b'x\n':
        file.write_bytes(content)
        case.refuses(lambda: load(run.folder), re.escape(str(file)))
    case.at_least(accepted=10, refused=25)


# Names of runs and folders

odd_names = [
    '..',
    '.',
    '/',
    '../x',
    'a/../b',
    '/etc',
    '/etc/passwd',
    '~',
    '~/x',
    '',
    ' ',
    '\0',
    'a\0b',
    'a\nb',
    'a\n',
    '\ud800',
    'x' * 256,
    'x' * 100_000,
    'é' * 200,
    '../' * 2000,
    'a/b/c/d',
    'a//b',
    './a',
    'a\\..\\b',
    'C:\\x',
    'file:///etc',
    'http://127.0.0.1/x',
    '-rf',
    '--help',
    '$(touch executed)',
    '`touch executed`',
    '; touch executed',
    'con',
    '|x',
    '*',
    '?',
    '\u202e',
    '%2e%2e/x',
    '{name}',
    '{0.__class__}',
    '..\u2215x',
    '﹒﹒',
    'entity/project',
    'e/p/../x',
    'e/../p/r',
    '../e/p',
    'e/p/..',
    '/e/p/r',
    'e/p/r\n',
    'e/p/r/',
    'e/p/\0',
    'e/p/.',
    './p/r',
    'e/p/r?x=1',
    'e/p/r#x',
    'e//r',
    'ë/p/r',
    'e/p/' + 'r' * 300,
    ' e/p/r',
    'e/p/r ',
] + [3, None, b'x', [], {}, 1.5, True, ('a',)]


def test_names_of_runs(case, run, good):
    o = build(
        {
            k: v
            for k, v in read(run.folder / 'manifest.json').items()
            if k in ('model', 'data', 'optimization')
        }
    )['optimization']
    for name in odd_names:
        inside = lambda r: (
            a_run(r)
            and r.folder.parent == Path(os.environ['RUNS_ROOT'])
            and len(os.fsencode(r.folder.name)) < 256
        )
        case(lambda: Run(o, '3 steps', name=name), inside, 'name')
        case(lambda: rerun(read(run.folder / 'manifest.json'), {'run.name': name}), inside, 'name')
        case(
            lambda: Evaluate(Terms('valid'), name=name),
            lambda e: (
                not Path(e.name).is_absolute()
                and '..' not in Path(e.name).parts
                and '\0' not in e.name
                and len(e.name) < 256
            ),
            'name',
        )
    for name in 'first-2', 'été', 'x' * 200, 'a b':
        case.takes(lambda: Run(o, '3 steps', name=name), a_run)
        case.takes(lambda: rerun(read(run.folder / 'manifest.json'), {'run.name': name}), a_run)
        case.takes(lambda: Evaluate(Terms('valid'), name=name))
    for name in '..', '/etc', 'a/../b', '\0', 3, 'x' * 256:
        case.refuses(lambda: Run(o, '3 steps', name=name), 'name')
        case.refuses(lambda: Evaluate(Terms('valid'), name=name), 'name')
    case.at_least(accepted=30, refused=85)


def test_names_of_folders(case, run, monkeypatch):
    "Of runs to load and to go on with, here and on W&B"

    def bring(name, folder, *_):
        assert folder.resolve().is_relative_to((case.folder / 'runs/wandb').resolve())
        assert len(folder.relative_to(case.folder / 'runs/wandb').parts) == 3
        raise MissingFile(f'{name!r} must be on W&B')

    monkeypatch.setattr('dlframe.loading._download', bring)
    for name in odd_names:
        for do in (
            load,
            lambda n: Run.resume(n, '9 steps'),
            read,
            lambda n: read(Path(str(n)) / 'manifest.json'),
        ):
            case.refuses(lambda: do(name))
    untouched(case, run)
    for name in 'runs/first', './runs/first', run.folder:
        case.takes(lambda: load(name), finite)
    case.at_least(accepted=7, refused=4 * len(odd_names))


def test_files_that_are_no_files(case, run):
    "A pipe that nobody writes to, a folder, a link to itself"
    for name in 'manifest.json', WEIGHTS, LAST, 'metrics.csv':
        for make_it in (
            os.mkfifo,
            os.mkdir,
            lambda p: os.symlink(p, p),
            lambda p: os.symlink('/dev/zero', p),
        ):
            run()
            if name == LAST:
                (run.folder / WEIGHTS).unlink()
            (run.folder / name).unlink()
            make_it(run.folder / name)
            case(lambda: load(run.folder), lambda found: name == WEIGHTS, '.')
            if name in (WEIGHTS, 'metrics.csv'):
                case.takes(lambda: Run.resume(run.folder, '9 steps'), a_run)
            else:
                case.refuses(lambda: Run.resume(run.folder, '9 steps'), '.')
            if name == 'manifest.json':
                case.refuses(lambda: rerun(read(run.folder / 'manifest.json')), '.')
            else:
                case.takes(lambda: rerun(read(run.folder / 'manifest.json')), a_run)
            (run.folder / name).rmdir() if (run.folder / name).is_dir() else (
                run.folder / name
            ).unlink()
    untouched(case, run)
    case.at_least(accepted=20, refused=20)


# Files of data


def test_images_with_changed_bytes(case, monkeypatch):
    monkeypatch.setenv('DATA_ROOT', str(case.folder))
    monkeypatch.setenv('DLFRAME_DEVICES', str(case.folder / 'devices.yaml'))
    monkeypatch.setenv('DEVICE_NAME', 'here')
    (case.folder / 'devices.yaml').write_text('here: {download: false}\n')
    raw = mnist(case.folder, 12) / 'MNIST/raw'
    whole = {p: p.read_bytes() for p in raw.iterdir()}

    def good(found):
        return (
            found['x'].dtype == torch.uint8
            and found['x'].ndim == 4
            and len(found['x']) == len(found['y']) <= 12
        )

    for file, content in whole.items():
        odd = (
            [struct.pack('>4B', 0, 0, 8, n) + content[4:] for n in (0, 1, 2, 3, 4, 255)]
            + [
                content[:4] + struct.pack('>i', n) + content[8:]
                for n in (-1, 0, 11, 13, 2**31 - 1, -(2**31))
            ]
            + [b'', content[:3], content[:4], content[:7], content + b'\0']
            + (
                [
                    content[:4] + struct.pack('>3i', *dims) + content[16:]
                    for dims in [
                        (-12, -28, 28),
                        (12, 14, 56),
                        (2**30, 2**30, 16),
                        (2**31 - 1,) * 3,
                        (28, 28, 12),
                        (12, 28, 0),
                        (0, 0, 0),
                        (9408, 1, 1),
                    ]
                ]
                + [
                    struct.pack('>4B3i', 0, 0, 8, 3, 2**30, 2**30, 16),
                    struct.pack('>4B3i', 0, 0, 8, 3, 0, 28, 28),
                ]
                if 'images' in file.name
                else [struct.pack('>4Bi', 0, 0, 8, 1, 0)]
            )
        )

        def one(content):
            file.write_bytes(content)
            case(lambda: check_idx(file), lambda found: True, re.escape(str(file)))
            for split in 'train', 'test':
                case(
                    lambda: images('MNIST')[split].tensors, good, re.escape(str(case.folder)) + '|`'
                )
            file.write_bytes(whole[file])

        for content_ in odd:
            one(content_)
        each(20, content=changed_bytes(content))(one)
        case.takes(lambda: check_idx(file))
        file.write_bytes(content[:-1])
        case.refuses(lambda: check_idx(file), re.escape(str(file)))
        file.write_bytes(content)
    for split in 'train', 'test':
        case.takes(lambda: images('MNIST')[split].tensors, good)
    case.at_least(accepted=20, refused=230)


# Folders of kernels


def test_folders_of_kernels(case):
    "`meta.json` and the files of a folder of MarkovDWP, changed"

    def fresh():
        shutil.rmtree(case.folder / 'kernels', ignore_errors=True)
        write_kernels(
            case.folder / 'kernels',
            {
                'conv0': np.ones((4, 2, 1, 3, 3), np.float32),
                'conv1': np.ones((4, 3, 2, 3, 3), np.float16),
            },
        )
        return case.folder / 'kernels'

    (case.folder / 'secret').write_bytes(bytes(288))
    folder = fresh()
    raw, numbers = (folder / 'meta.json').read_bytes(), (folder / 'v0000.bin').read_bytes()

    def good(split):
        return (
            split.tensors['x'].dtype == torch.float32
            and split.tensors['x'].ndim > 2
            and split.tensors['x'].isfinite().all()
        )

    def one(content):
        (folder / 'meta.json').write_bytes(content)
        case(
            lambda: read_kernels(folder),
            lambda layers: all(
                layer.file.parent == folder and layer.map().nbytes == layer.file.stat().st_size
                for layer in layers.values()
            ),
            re.escape(str(folder)),
        )
        case(lambda: Kernels(str(folder), 'conv0')['train'], good, re.escape(str(folder)) + '|`')

    case.takes(lambda: read_kernels(folder), lambda layers: set(layers) == {'conv0', 'conv1'})
    for layer in 'conv0', 'conv1':
        case.takes(lambda: Kernels(str(folder), layer)['train'], good)
    each(80, content=changed_bytes(raw))(one)
    places = [p for p in paths(json.loads(raw))]
    other = st.sampled_from(
        [
            KeyError,
            None,
            0,
            -1,
            1e999,
            2.5,
            True,
            10**400,
            10**4000,
            '',
            '..',
            '.',
            '../secret',
            str(case.folder / 'secret'),
            '/etc/passwd',
            'link',
            'pipe',
            'v0001.bin',
            'x' * 9999,
            '\0',
            '\ud800',
            'torch.int8',
            'torch.float64',
            [],
            {},
            [288, 1, 1],
            [-4, -2, 1, 3, 3],
            [72],
            [2**32, 2**32, 1, 1],
            [4, 2, 1, 9],
            [True] * 4,
            [10**4000] * 4,
            deep(300),
        ]
    )
    (folder / 'link').symlink_to('../secret'), os.mkfifo(folder / 'pipe')

    @each(150, path=st.sampled_from(places), value=other)
    def _(path, value):
        one(replaced(raw, path, value))

    (folder / 'meta.json').write_bytes(raw)
    for content in [
        b'',
        numbers[:-1],
        numbers + b'\0',
        numbers * 2,
        struct.pack('<f', math.nan) * 72,
        struct.pack('<f', math.inf) * 72,
        bytes(288),
    ]:
        (folder / 'v0000.bin').write_bytes(content)
        case(
            lambda: Kernels(str(folder), 'conv0')['train'],
            good,
            re.escape(str(folder)) + '|`min_norm`',
        )
    for content in b'', b'[]', b'{}', raw[:-9]:
        (folder / 'meta.json').write_bytes(content)
        case.refuses(lambda: read_kernels(folder), re.escape(str(folder)))
    for name in odd_names:
        case.refuses(lambda: Kernels(name, 'conv0')['train'])
        case.refuses(lambda: Kernels(str(folder), name)['train'])
    case.at_least(accepted=9, refused=290)


# Sweep files

SWEEPS = sorted((ROOT / 'sweeps').glob('*.yaml'))


@pytest.fixture
def sweeps(tmp_path):
    "A folder with a notebook that a sweep may run: `write(sweep)` gives the file"
    page = tmp_path / 'nbs/experiments/train.ipynb'
    page.parent.mkdir(parents=True)
    shutil.copy(ROOT / PAGE, page)

    def write(content):
        (tmp_path / 'sweep.yaml').write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode()
        )
        return tmp_path / 'sweep.yaml'

    write.page = page
    return write


def sensible(sweep):
    "Whatever is drawn from it can be read by the page"
    return (
        sweep.method in ('grid', 'random', 'bayes')
        and not sweep.program.is_absolute()
        and sweep.parameters.keys() <= declared(ROOT / PAGE).keys()
        and all(isinstance(w, str) for w in sweep.command)
        and (sweep.run_cap is None or sweep.run_cap > 0)
    )


def test_sweeps_with_changed_bytes(case, sweeps):
    for original in SWEEPS:

        @each(40, content=changed_bytes(original.read_bytes()))
        def _(content):
            file = sweeps(content)
            case(lambda: read_sweep(file, case.folder), sensible, re.escape(str(file)))

    as_they_are(case, sweeps)
    case.at_least(accepted=50, refused=130)


def as_they_are(case, sweeps):
    "The sweep files of the repository are read"
    for original in SWEEPS:
        file = sweeps(original.read_bytes())
        case.takes(lambda: read_sweep(file, case.folder), sensible)


def test_sweeps_with_other_values(case, sweeps):
    "Each place holds something that does not belong there, or nothing, or more"
    originals = [parse(f.read_text('utf-8')) for f in SWEEPS] + [
        {
            **parse(SWEEPS[0].read_text('utf-8')),
            'early_terminate': {
                'type': 'hyperband',
                'max_iter': 27,
                's': 2,
                'eta': 3,
                'strict': True,
            },
            'parameters': {
                'lr': {'distribution': 'q_log_uniform', 'min': -5, 'max': -1, 'q': 1e-3},
                'beta': {'distribution': 'normal', 'mu': 0, 'sigma': 1},
                'weights': {
                    'parameters': {'rate': {'values': [0.1, 0.2], 'probabilities': [0.5, 0.5]}}
                },
            },
        }
    ]
    other = st.sampled_from(
        [
            KeyError,
            None,
            0,
            -1,
            1e999,
            math.nan,
            10**400,
            '',
            '..',
            '/etc/passwd',
            '../train.ipynb',
            '${program}',
            '${envvar:WANDB_RUN_ID}',
            '\0',
            '\ud800',
            'x' * 9999,
            [],
            {},
            [[]],
            [None],
            {'value': 1},
            {'parameters': {}},
            {'parameters': {'a': {'value': 1}}},
            {'min': 1, 'max': 1},
            {'distribution': 'log_uniform', 'min': 0, 'max': 1e9},
            {'distribution': 'beta', 'a': 0, 'b': 1},
            {'distribution': 'inv_log_uniform_values', 'min': -1, 'max': 1},
            {'distribution': 'q_uniform', 'min': 0, 'max': 1, 'q': 1e-320},
            {'distribution': 'q_uniform', 'min': 0.0, 'max': 1e308, 'q': 1e-300},
            {'distribution': 'uniform', 'min': -1.7e308, 'max': 1.7e308},
            {'distribution': ['uniform']},
            {'values': 3},
            {'value': {'cls': 'os.system'}},
            deep(200),
        ]
    )
    places = st.one_of(*(st.tuples(st.just(o), st.sampled_from(list(paths(o)))) for o in originals))

    @each(250, where=places, value=other | leaves)
    def _(where, value):
        file = sweeps(replaced(json.dumps(where[0]), where[1], value))
        case(lambda: read_sweep(file, case.folder), sensible, re.escape(str(file)))

    as_they_are(case, sweeps)
    case.at_least(accepted=25, refused=90)


def test_sweeps_of_odd_kinds(case, sweeps):
    for content in [
        b'',
        b'{}',
        b'[]',
        b'3',
        b'\xff\xfe',
        laughs(30),
        laughs(12, True),
        b'a: &a [*a]',
        b'[' * 50_000,
        b'program: !!python/object/apply:os.system [touch executed]',
        b'parameters: &p {beta: *p}',
        b'program: x.ipynb\nprogram: y.ipynb',
        b'--- {}\n--- {}',
        b'1: 2',
        b'? [a]\n: 1',
    ]:
        file = sweeps(content)
        case.refuses(lambda: read_sweep(file, case.folder), re.escape(str(file)))
    for name in odd_names:
        case.refuses(lambda: read_sweep(name))
    as_they_are(case, sweeps)
    case.at_least(accepted=len(SWEEPS), refused=15 + len(odd_names))


def test_notebooks_that_sweeps_run(case, sweeps):
    "The page is read, never executed"
    file, raw = sweeps(SWEEPS[0].read_bytes()), sweeps.page.read_bytes()
    start = raw.index(b'"parameters"')

    @each(60, content=changed_bytes(raw[start - 200 : start + 3000]))
    def _(content):
        sweeps.page.write_bytes(raw[: start - 200] + content + raw[start + 3000 :])
        case(
            lambda: read_sweep(file, case.folder),
            lambda sweep: sweep.method == 'bayes',
            re.escape(str(file)),
        )

    def page(source, tags=('parameters',)):
        return json.dumps(
            {'cells': [{'cell_type': 'code', 'source': source, 'metadata': {'tags': tags}}]}
        ).encode()

    for content in [
        b'',
        b'{}',
        b'[]',
        b'{"cells": 3}',
        b'{"cells": [3]}',
        b'{"cells": [{"cell_type": "code"}]}',
        b'\xff',
        b'[' * 50_000,
        page(3),
        page([3]),
        page('a'),
        page('beta: float = 1.', 3),
        page('beta: float = 1.', 'parameters'),
        page("beta: open('executed', 'w') = 1"),
        page("beta: [open('executed', 'w') for _ in 'a'][0] = 1"),
        page("beta: (lambda: open('executed', 'w'))() = 1"),
        page("beta: list[__import__('os').system('touch executed')] = 1"),
        page('beta: float = open("executed", "w")'),
        page('%%bash\ntouch executed'),
        page('!touch executed'),
        page('x: ' + 'list[' * 80 + 'int' + ']' * 80 + ' = 1'),
        page('x: ' + '(' * 5000 + ' = 1'),
        page("x: int|'executed' = 1"),
        page('x: int[3] = 1'),
        page('\0: int = 1'),
    ]:
        sweeps.page.write_bytes(content)
        case.refuses(lambda: read_sweep(file, case.folder), re.escape(str(file)))
    sweeps.page.write_bytes(raw)
    case.takes(lambda: read_sweep(file, case.folder), sensible)
    case.at_least(accepted=8, refused=34)


@pytest.mark.parametrize('how', ['refuse', 'accept'])
def test_the_tests_see(how, tmp_path, monkeypatch):
    """These fail where everything is refused, and where everything is taken; `tests/blind.py` tries
    all of them
    """
    monkeypatch.chdir(tmp_path)
    blindfold(sys.modules[__name__], how, monkeypatch)
    for test in (
        test_right_values_are_taken,
        test_cells,
        test_paths,
        test_places_in_a_list,
        test_arguments_in_a_row,
        test_circles_and_depths,
    ):
        with pytest.raises(Exception):  # noqa: B017  it fails, in whatever way
            test(Cases(tmp_path))
    with pytest.raises(Exception):  # noqa: B017  it fails, in whatever way
        test_specifications(Cases(tmp_path), None)


if __name__ == '__main__':
    sys.exit(pytest.main([__file__, '-n0', '-q', '-p', 'no:cacheprovider']))
