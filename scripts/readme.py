"README.md from nbs/index.ipynb (nbdev-readme would need Quarto)"

import json
import re
from pathlib import Path
from posixpath import normpath

root = Path(__file__).resolve().parents[1]
links = re.compile(r'(\]\(|(?:src|href)=")(?![a-z]+:|[#/])([^)"\s]+)')


def text(s):
    "Markdown whose relative links start at the root"
    return links.sub(lambda m: m[1] + normpath('nbs/' + m[2]), ''.join(s))


def block(s, lang=''):
    return f'```{lang}\n{"".join(s).strip()}\n```'


def output(o):
    "An output as markdown or as plain text; pictures are left to links"
    data = o.get('data', {'text/plain': o.get('text', '')})
    if 'text/markdown' in data:
        return text(data['text/markdown'])
    if any(k.startswith('image/') for k in data):
        return ''
    return block(data['text/plain']) if ''.join(data.get('text/plain', '')).strip() else ''


def blocks(cell):
    "What the README shows of `cell`"
    if cell['cell_type'] == 'markdown':
        return [text(cell['source'])]
    if cell['cell_type'] != 'code':
        return []
    lines = ''.join(cell['source']).splitlines()
    flags = {line[2:].replace(' ', '') for line in lines if line.startswith('#|')}
    if 'hide' in flags:
        return []
    code = '\n'.join(line for line in lines if not line.startswith('#|')).strip()
    return [
        block(code, 'python') if code and 'echo:false' not in flags else '',
        *map(output, cell['outputs']),
    ]


if __name__ == '__main__':
    cells = json.loads((root / 'nbs/index.ipynb').read_text('utf-8'))['cells']
    parts = [b.strip() for c in cells for b in blocks(c) if b.strip()]
    (root / 'README.md').write_text('\n\n'.join(parts) + '\n', 'utf-8')
