"One torch thread in each of the parallel processes, and a last line that counts"
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    if hasattr(config, 'workerinput') or not reporter: return
    n = {k: len(v) for k, v in reporter.stats.items()}
    line = f"{n.get('passed', 0)} passed, {n.get('failed', 0) + n.get('error', 0)} failed"
    if n.get('skipped'): line += f", {n['skipped']} skipped"
    reporter.write_line(line)
