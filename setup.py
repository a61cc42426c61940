"The package, as settings.ini describes it"

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser()
ini.read(here / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
name = cfg['lib_name']

setup(
    name=name,
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'],
    author=cfg['author'],
    license_expression=cfg['license'],
    license_files=['LICENSE'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[name, f'{name}.*']),
    package_data={name: ['py.typed']},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'papermill.engine': cfg['papermill_engines'].split(),
        'nbdev': [f'{name}={name}._modidx:d'],
    },
)
