#!/bin/bash
# Runs agents of a sweep, one in each job of an array. LSF reads the script from the standard input, so the sweep is a variable:
#   mkdir -p runs && SWEEP=entity/project/sweep_id bsub < scripts/lsf_agents.sh
#   mkdir -p runs && SWEEP=sweeps/vae_beta.yaml bsub < scripts/lsf_agents.sh
# Shortly before the end of its time, the agent's trial saves a checkpoint. The job is queued again, and there the trial resumes.
#BSUB -o runs/lsf-%J_%I.log
# LSF queues a job again if its exit status is 99 (interrupted by the signal) or its machine is lost
#BSUB -Q 99
#BSUB -r
# CHANGE: number of agents, at most the number of trials
#BSUB -J dlframe-agents[1-4]
# CHANGE: the queue of your cluster; `bqueues` lists them
#BSUB -q gpu
# CHANGE: the GPUs of an agent; delete the line for small models
#BSUB -gpu num=1
# CHANGE: cores, to load data, on one machine
#BSUB -n 4
#BSUB -R span[hosts=1]
# CHANGE: memory, on many clusters per core
#BSUB -R rusage[mem=4G]
# CHANGE: time limit of one job in hours and minutes; an agent runs trials until the sweep is finished or the time is over
#BSUB -W 8:00
# CHANGE: minutes from the signal to the end, more than a step and a checkpoint take
#BSUB -wa USR1 -wt 2
set -eu

sweep=${SWEEP:?usage: SWEEP=entity/project/sweep_id, or sweeps/FILE.yaml, bsub < scripts/lsf_agents.sh}
cd "${LS_SUBCWD:-.}"
# CHANGE: the path of the programs, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder of the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${LSB_DJOB_NUMPROC:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

case "$sweep" in *.yaml|*.yml) set -- dlframe-agent "$sweep" ;; *) set -- wandb agent --forward-signals "$sweep" ;; esac
over='' agent=''
trap 'over=yes; [ -z "$agent" ] || kill -TERM "$agent"' USR1
trap : TERM # bkill sends SIGTERM to this script and to the agent; this script must outlive the agent
"$@" &
agent=$!
[ -z "$over" ] || kill -TERM "$agent"
while status=0; wait "$agent" || status=$?; kill -0 "$agent" 2>/dev/null; do :; done # a signal interrupts `wait`, not the agent
[ -z "$over" ] || exit 99
exit "$status"
