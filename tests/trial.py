"""Stands for a notebook where many trials are needed: it logs a value every few hundredths of a
second, goes on where its table ends, and tells of each start

python trial.py STEPS JSON
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

run = Path(os.environ['RUNS_ROOT']) / os.environ['WANDB_SWEEP_ID'] / os.environ['WANDB_RUN_ID']
run.mkdir(parents=True, exist_ok=True)
config, table = json.loads(sys.argv[-1]), run / 'metrics.csv'
made = len(table.read_text().splitlines()) - 1 if table.exists() else 0


def tell(what, **more):
    with open(run / 'told', 'a') as f:
        f.write(json.dumps({what: made, 'process': os.getpid(), **more}) + '\n')


alone = open(run / 'alone', 'a')  # noqa: SIM115  locked until this process ends
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    tell('doubled')
    sys.exit(3)
tell('start', threads=os.environ['OMP_NUM_THREADS'], device=os.environ.get('CUDA_VISIBLE_DEVICES'))


def stop(number, frame):
    tell('stopped')
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, stop)

first = made
for made in range(first, int(sys.argv[1])):
    head = '' if made else 'name,value,steps\n'
    with open(table, 'a') as f:
        f.write(f'{head}valid/loss,{config["beta"] + 1 / (1 + made)},{made}\n')
    time.sleep(0.03)
made += 1
tell('end')
