"The sweep files name parameters that exist, with values that can be read"
import json
from pathlib import Path

import pytest
import yaml

from dlframe.params import declaration, read_value

root = Path(__file__).parent.parent
files = sorted((root/'sweeps').glob('*.yaml'))

def declared(notebook):
    "Names and types in the notebook's parameters cell"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    source, = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    return {name: eval(kind) for name, kind in declaration(source).items()}

def test_there_are_sweeps(): assert files

@pytest.mark.parametrize('file', files, ids=lambda f: f.name)
def test_parameters(file):
    sweep = yaml.safe_load(file.read_text(encoding='utf-8'))
    kinds = declared(root/sweep['program'])
    for name, choice in sweep['parameters'].items():
        given = choice['values'] if 'values' in choice else [choice[k] for k in ('value', 'min', 'max') if k in choice]
        assert given, name
        for value in given: read_value(name, value, kinds[name])

@pytest.mark.parametrize('file', files, ids=lambda f: f.name)
def test_command(file):
    "Each trial gets a notebook of its own: W&B expands `${envvar:WANDB_RUN_ID}` before there is one, so the shell must"
    command = yaml.safe_load(file.read_text(encoding='utf-8'))['command']
    assert '"runs/$WANDB_SWEEP_ID/$WANDB_RUN_ID.ipynb"' in command[3] and not any('envvar' in c for c in command)
