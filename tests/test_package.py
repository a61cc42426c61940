"One version, one list of requirements, a wheel and an sdist that hold what they should"
import os, tarfile
from configparser import ConfigParser

import dlframe
from nbdev.config import get_config
from tree import ROOT, copy_tree, run

ini = ConfigParser()
ini.read(ROOT/'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']
no_torch = "import sys, dlframe; print(dlframe.__version__); sys.exit('torch' in sys.modules)"

def test_settings_agree():
    cfg = get_config(ROOT)
    assert settings['version'] == dlframe.__version__ == cfg.version
    assert settings['lib_name'] == dlframe.__name__ == cfg.title == cfg.lib_path.name

def test_quarto_settings_are_linked(): assert os.readlink(ROOT/'nbs/_quarto.yml') == '../_quarto.yml'

def test_import_is_light(): assert run('python', '-c', no_torch).returncode == 0

def test_wheel_and_sdist(tmp_path):
    copy = copy_tree(tmp_path/'copy')
    built = run('python', '-m', 'build', '--no-isolation', '--outdir', tmp_path, cwd=copy)  # the wheel is built from the sdist
    assert built.returncode == 0, built.stdout
    name = f"{settings['lib_name']}-{settings['version']}"
    with tarfile.open(tmp_path/f'{name}.tar.gz') as sdist:
        assert {f'{name}/{f}' for f in ('settings.ini', 'setup.py', 'README.md', 'LICENSE')} <= set(sdist.getnames())

    empty = tmp_path/'empty'
    assert run('python', '-m', 'venv', empty).returncode == 0
    installed = run(empty/'bin/python', '-m', 'pip', 'install', '--no-deps', '--no-index', tmp_path/f'{name}-py3-none-any.whl', cwd=tmp_path)
    assert installed.returncode == 0, installed.stdout
    used = run(empty/'bin/python', '-c', no_torch, cwd=tmp_path)
    assert (used.returncode, used.stdout.strip()) == (0, settings['version'])
    assert (empty/'bin/dlframe-run').exists()
