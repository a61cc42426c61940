"One torch thread in each of the parallel processes, long files first, and a last line that counts"
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

long = 'wandb_sweeps', 'lost', 'train', 'notebooks', 'agent', 'wandb', 'machines' # each stays in one process, so what takes longest begins first

def pytest_collection_modifyitems(items):
    place = {f'test_{name}': i for i, name in enumerate(long)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))

def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    if hasattr(config, 'workerinput') or not reporter: return
    n = {k: len(v) for k, v in reporter.stats.items()}
    line = f"{n.get('passed', 0)} passed, {n.get('failed', 0) + n.get('error', 0)} failed"
    if n.get('skipped'): line += f", {n['skipped']} skipped"
    reporter.write_line(line)

def pytest_terminal_summary(terminalreporter):
    "On which cluster there were jobs; how probable it is that two programs draw from one distribution; how generated cases ended"
    told = [(r.nodeid.split('::')[-1], k, v) for reports in terminalreporter.stats.values() for r in reports if getattr(r, 'when', '') == 'teardown' for k, v in r.user_properties]
    for cluster in sorted({v for _, k, v in told if k == 'slurm'}): terminalreporter.write_line(f'Slurm was {cluster}')
    for storm in (v for _, k, v in told if k == 'storm'): terminalreporter.write_line(storm)
    found = sorted(v for _, k, v in told if k == 'p')
    if found: terminalreporter.write_line('drawn alike'.ljust(60) + 'p'.rjust(19))
    for name, p in found: terminalreporter.write_line(name.ljust(60) + f'{p:19.3f}')
    rows = [(name, v) for name, k, v in told if k == 'cases']
    if not rows: return
    kinds = sorted({k for _, ends in rows for k in ends})
    total = {k: sum(ends.get(k, 0) for _, ends in rows) for k in kinds}
    terminalreporter.write_line('generated cases'.ljust(60) + ''.join(k.rjust(19) for k in ['all', *kinds]))
    for name, ends in [*sorted(rows), ('all', total)]: terminalreporter.write_line(name.ljust(60) + ''.join(str(n).rjust(19) for n in [sum(ends.values()), *(ends.get(k, 0) for k in kinds)]))
