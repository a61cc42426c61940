"One version, one list of requirements, a wheel and an sdist that hold what they should"

import email
import os
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import requires

import pytest
from nbdev.config import get_config
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tree import ROOT, copy_tree, run

import dlframe

ini = ConfigParser()
ini.read(ROOT / 'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']
no_torch = "import sys, dlframe; print(dlframe.__version__); sys.exit('torch' in sys.modules)"


def test_settings_agree():
    cfg = get_config(ROOT)
    assert settings['version'] == dlframe.__version__ == cfg.version
    assert settings['lib_name'] == dlframe.__name__ == cfg.title == cfg.lib_path.name


def test_quarto_settings_are_linked():
    assert os.readlink(ROOT / 'nbs/_quarto.yml') == '../_quarto.yml'


# as setup.py splits them
required = {r.name: r.specifier for r in map(Requirement, settings['requirements'].split())}


@pytest.mark.parametrize(
    'version, allowed',
    [
        ('2.5.9', False),
        ('2.6.0', True),
        ('2.6.1', True),
        ('2.6.2', False),
        ('2.6.3', False),
        ('2.6.4', True),
        ('2.6.6', True),
        ('2.7.0', True),
    ],
)
def test_withdrawn_releases_of_lightning_are_excluded(version, allowed):
    """2.6.2 and 2.6.3 were withdrawn as malicious; an index of one's own, or a lock file, may still
    hold them
    """
    assert (version in required['pytorch-lightning']) == allowed


def test_the_package_that_shares_those_releases_is_not_required():
    """`lightning` was released with the same code under the same versions: no requirement of ours
    brings it in
    """
    found = set()
    new = [*required, *(Requirement(r).name for r in settings['dev_requirements'].split())]
    while new:
        name = canonicalize_name(new.pop())
        if name in found:
            continue
        found.add(name)
        try:
            following = map(Requirement, requires(name) or [])
        except ModuleNotFoundError:
            continue  # of another platform or Python
        new += [r.name for r in following if not r.marker or r.marker.evaluate({'extra': ''})]
    assert {'pytorch-lightning', 'torch', 'nbdev'} <= found
    assert 'lightning' not in found


def test_import_is_light():
    assert run('python', '-c', no_torch).returncode == 0


def test_wheel_and_sdist(tmp_path):
    copy = copy_tree(tmp_path / 'copy')
    # the wheel is built from the sdist
    built = run('python', '-m', 'build', '--no-isolation', '--outdir', tmp_path, cwd=copy)
    assert built.returncode == 0, built.stdout
    name = f'{settings["lib_name"]}-{settings["version"]}'
    with tarfile.open(tmp_path / f'{name}.tar.gz') as sdist:
        assert {f'{name}/{f}' for f in ('settings.ini', 'setup.py', 'README.md', 'LICENSE')} <= set(
            sdist.getnames()
        )

    with zipfile.ZipFile(tmp_path / f'{name}-py3-none-any.whl') as wheel:
        metadata = email.message_from_bytes(wheel.read(f'{name}.dist-info/METADATA'))
    told = map(Requirement, metadata.get_all('Requires-Dist'))
    assert {r.name: r.specifier for r in told if not r.marker} == required

    empty = tmp_path / 'empty'
    assert run('python', '-m', 'venv', empty).returncode == 0
    installed = run(
        empty / 'bin/python',
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-index',
        tmp_path / f'{name}-py3-none-any.whl',
        cwd=tmp_path,
    )
    assert installed.returncode == 0, installed.stdout
    used = run(empty / 'bin/python', '-c', no_torch, cwd=tmp_path)
    assert (used.returncode, used.stdout.strip()) == (0, settings['version'])
    assert (empty / 'bin/dlframe-run').exists()
