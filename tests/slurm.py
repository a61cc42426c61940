"""Slurm for a test: the real one, started in a folder by whoever runs the test, or where it is not
installed a stand-in
"""

import contextlib
import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from experiment import attentive
from limits import PATIENCE

CONF = """ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs=32 RealMemory=131072 \
Gres=gpu:7 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def until(condition):
    "Wait for what `condition` gives"
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, 'it did not come'
        time.sleep(0.1)
    return found


def program(name):
    return shutil.which(
        name, path=os.pathsep.join([os.environ['PATH'], '/usr/local/sbin', '/usr/sbin', '/sbin'])
    )


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    def hurry(self, job):
        pass

    def wait(self, job):
        "Until it has ended: states, and how often it was started again"
        until(
            lambda: (
                self.hurry(job)
                or all(
                    s in ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT') for s, _ in self.jobs(job)
                )
            )
        )
        return self.jobs(job)

    def again(self, job, restarts):
        "Until a job runs for another time"
        until(lambda: self.hurry(job) or self.jobs(job) == [('RUNNING', restarts)])


class Slurm(Cluster):
    "Two daemons, a partition `gpu` of one node with seven GPUs that are none, no authentication"

    def __init__(self, folder):
        for name in 'state', 'spool':
            (folder / name).mkdir(parents=True)
        self.folder = folder
        self.conf = folder / 'slurm.conf'
        self.processes = []
        self.hurried = set()
        self.conf.write_text(
            CONF.format(
                folder=folder,
                ports=free_ports(2),
                user=getpass.getuser(),
                host=socket.gethostname().split('.')[0],
            )
        )
        (folder / 'gres.conf').write_text(
            'NodeName=localhost Name=gpu '
            'File=/dev/null,/dev/zero,/dev/full,/dev/random,/dev/urandom,/dev/tty,/dev/ptmx\n'
        )
        self.env = {**os.environ, 'SLURM_CONF': str(self.conf)}
        try:
            for words in ['slurmctld', '-D'], ['slurmd', '-D', '-N', 'localhost']:
                with open(folder / f'{words[0]}.said', 'w') as said:
                    self.processes.append(
                        subprocess.Popen(
                            [program(words[0]), *words[1:]],
                            env=self.env,
                            stdin=subprocess.DEVNULL,
                            stdout=said,
                            stderr=said,
                            preexec_fn=attentive,
                        )
                    )
            idle = lambda: self.ask('sinfo', '-h', '-o', '%t') == 'idle'
            until(lambda: idle() or any(p.poll() is not None for p in self.processes))
            assert all(p.poll() is None for p in self.processes), 'a daemon ended'
            self.called = f'Slurm {self.ask("sinfo", "-V").split()[-1]}, started for the tests'
        except (AssertionError, OSError) as e:
            self.stop()
            said = [
                line
                for f in sorted(folder.glob('*.said'))
                for line in f.read_text(errors='replace').splitlines()
                if 'error' in line or 'fatal' in line
            ]
            raise OSError(f'{e}: {said[-1] if said else "nothing was said"}') from e

    def ask(self, *words):
        "A command of Slurm, and what it said"
        command = [program(words[0]), *words[1:]]
        r = subprocess.run(command, env=self.env, capture_output=True, text=True)
        return r.stdout.strip()

    def sbatch(self, *words, cwd, env):
        "Submit; the job's number, and the complaint if it was refused"
        r = subprocess.run(
            [program('sbatch'), '--parsable', *map(str, words)],
            cwd=cwd,
            env={**env, 'SLURM_CONF': str(self.conf)},
            capture_output=True,
            text=True,
        )
        return r.stdout.strip(), r.stderr.strip()

    def jobs(self, job):
        "State of each job of an array, or of the one, and how often it was started again"
        shown = self.ask('scontrol', 'show', 'job', '-o', job).splitlines()
        return [
            (re.search(r'JobState=(\w+)', line)[1], int(re.search(r'Restarts=(\d+)', line)[1]))
            for line in shown
            if 'JobState' in line
        ]

    def warn(self, job):
        self.ask('scancel', '--signal=USR1', job)

    def cancel(self, job):
        self.ask('scancel', job)

    def requeue(self, job):
        self.ask('scontrol', 'requeue', job)

    def out_of_time(self, job):
        "The end is so near that it must be told; Slurm looks every thirty seconds"
        for number in re.findall(r'\bJobId=(\d+)', self.ask('scontrol', 'show', 'job', '-o', job)):
            self.ask('scontrol', 'update', f'JobId={number}', 'TimeLimit=2')

    def hurry(self, job):
        """What is queued again would wait for two minutes. Three seconds it needs: a node takes no
        job that it has ended in the same second
        """
        for line in self.ask('scontrol', 'show', 'job', '-o', job).splitlines():
            number, again = re.search(r'JobId=(\d+)', line), re.search(r'Restarts=(\d+)', line)
            if 'Reason=BeginTime' not in line or (number[1], again[1]) in self.hurried:
                continue
            self.hurried.add((number[1], again[1]))
            self.ask('scontrol', 'update', number[0], 'StartTime=now+3')

    def stop(self):
        "Daemons, jobs and whatever they have started"
        if all(p.poll() is None for p in self.processes):
            self.ask('scancel', '--full', '--signal=KILL', '--user', getpass.getuser())
        for p in reversed(self.processes):
            p.terminate()
            try:
                p.wait(20)
            except subprocess.TimeoutExpired:
                p.kill(), p.wait()
        for pid in self.ours():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ours(self):
        "Processes that know this cluster and no other"
        found = []
        for p in Path('/proc').glob('[0-9]*/environ'):
            try:
                ours = f'SLURM_CONF={self.conf}'.encode() in p.read_bytes().split(b'\0')
            except OSError:
                continue
            if ours and int(p.parent.name) != os.getpid():
                found.append(int(p.parent.name))
        return found


class StandIn(Cluster):
    """Reads what a script asks for, starts it as Slurm would, tells it, starts it again if
    `scontrol` was asked to
    """

    def __init__(self, folder, called):
        self.folder, self.called, self.all = folder, called, {}
        (folder / 'bin').mkdir(parents=True)
        for name, text in {
            'srun': 'exec "$@"',
            'scontrol': f'echo "$@" >> {shlex.quote(str(folder / "asked"))}',
        }.items():
            (folder / 'bin' / name).write_text(f'#!/bin/sh\n{text}\n')
            (folder / 'bin' / name).chmod(0o755)

    def sbatch(self, *words, cwd, env):
        given = [w for w in words if w.startswith('--')][
            : next(i for i, w in enumerate(words) if not w.startswith('--'))
        ]
        script, words = Path(cwd, words[len(given)]), words[len(given) :]
        options = dict(
            re.findall(
                r'^(?:#SBATCH )?--([a-z-]+)(?:=(.*))?$',
                '\n'.join([script.read_text(), *given]),
                re.M,
            )
        )
        first, last = map(int, options.get('array', '1-1').split('-'))
        name, number = str(10 * len(self.all) + 10), 10 * len(self.all) + 10
        self.all[name] = [
            dict(
                number=number + (i + 1) % (last - first + 1),
                task=task,
                words=['bash', script, *words[1:]],
                cwd=cwd,
                env=env,
                options=options,
                restarts=0,
            )
            for i, task in enumerate(range(first, last + 1))
        ]
        for j in self.all[name]:
            self.start(name, j)
        return name, ''

    def start(self, job, j):
        o = j['options']
        array = (
            {'SLURM_ARRAY_JOB_ID': job, 'SLURM_ARRAY_TASK_ID': j['task']}
            if 'array' in j['options']
            else {}
        )
        variables = dict(
            SLURM_JOB_ID=j['number'],
            SLURM_SUBMIT_DIR=j['cwd'],
            SLURM_CPUS_PER_TASK=o['cpus-per-task'],
            SLURM_JOB_NAME=o['job-name'],
            SLURM_NTASKS=1,
            SLURM_PROCID=0,
            SLURM_LOCALID=0,
            SLURM_NODEID=0,
            SLURM_NODELIST='here',
            **array,
        )
        if j['restarts']:
            variables['SLURM_RESTART_COUNT'] = j['restarts']
        env = {
            **j['env'],
            **{k: str(v) for k, v in variables.items()},
            'PATH': f'{self.folder / "bin"}{os.pathsep}{j["env"]["PATH"]}',
        }
        log = Path(
            j['cwd'],
            o['output']
            .replace('%j', str(j['number']))
            .replace('%A', job)
            .replace('%a', str(j['task'])),
        )
        with open(log, 'a' if o.get('open-mode') == 'append' else 'w') as log:
            j['process'] = subprocess.Popen(
                [str(w) for w in j['words']],
                cwd='/',
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=attentive,
            )

    def signal(self, job, number, all):
        for j in self.all[job]:
            if j['process'].poll() is None:
                (os.killpg if all else os.kill)(j['process'].pid, number)

    def warn(self, job):
        self.signal(job, signal.SIGUSR1, True)

    def out_of_time(self, job):
        self.signal(job, signal.SIGUSR1, not self.all[job][0]['options']['signal'].startswith('B:'))

    def cancel(self, job):
        self.signal(job, signal.SIGTERM, True)

    def requeue(self, job):
        with open(self.folder / 'asked', 'a') as f:
            f.writelines(f'requeue {j["number"]}\n' for j in self.all[job])
        self.signal(job, signal.SIGTERM, True)

    def jobs(self, job):
        asked = (self.folder / 'asked').read_text() if (self.folder / 'asked').exists() else ''
        found = []
        for j in self.all[job]:
            # the last means all of the array, and one of its jobs has that number
            code = j['process'].poll()
            names = {f'requeue {j["number"]}', f'requeue {job}_{j["task"]}', f'requeue {job}'}
            if code is not None:
                self.end(j)
            if code is not None and sum(map(asked.splitlines().count, names)) > j['restarts']:
                j['restarts'] += 1
                self.start(job, j)
                code = None
            found.append(
                (
                    'RUNNING' if code is None else 'COMPLETED' if code == 0 else 'FAILED',
                    j['restarts'],
                )
            )
        return found

    def end(self, j):
        "Nothing of a job outlives its script"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(j['process'].pid, signal.SIGKILL)
        j['process'].wait()

    def stop(self):
        for j in [j for jobs in self.all.values() for j in jobs]:
            self.end(j)


def cluster(folder):
    "The real one if its daemons are here and start"
    missing = [name for name in ('slurmctld', 'slurmd', 'sbatch') if not program(name)]
    if missing:
        return StandIn(folder / 'stand-in', f'a stand-in, for there is no {missing[0]} here')
    try:
        return Slurm(folder / 'slurm')
    except (OSError, KeyError) as e:
        return StandIn(
            folder / 'stand-in', f'a stand-in, for the Slurm that is installed did not start: {e}'
        )
