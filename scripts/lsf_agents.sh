#!/bin/bash
# Agents on a sweep, one in each job of an array. LSF reads options from what it is handed as input, so the sweep is a variable:
#   mkdir -p runs && SWEEP=entity/project/sweep_id bsub < scripts/lsf_agents.sh
#   mkdir -p runs && SWEEP=sweeps/vae_beta.yaml bsub < scripts/lsf_agents.sh
# Told that its time is over, an agent lets its trial save a checkpoint, and its job is queued again, in which the trial goes on.
#BSUB -o runs/lsf-%J_%I.log
# its exit status when it was told: such a job is queued again; and so is one whose machine is lost
#BSUB -Q 99
#BSUB -r
# CHANGE: how many agents, at most as many as there are trials
#BSUB -J dlframe-agents[1-4]
# CHANGE: the queue of your cluster; `bqueues` lists them
#BSUB -q gpu
# CHANGE: what an agent needs; leave the GPU out for small models
#BSUB -gpu num=1
# CHANGE: cores, for the loading of data, on one machine
#BSUB -n 4
#BSUB -R span[hosts=1]
# CHANGE: memory, in many places for each core
#BSUB -R rusage[mem=4G]
# CHANGE: hours and minutes of one job; an agent takes trials until the sweep is done or this is over
#BSUB -W 8:00
# CHANGE: how many minutes before the end it is told, longer than a step and a checkpoint take
#BSUB -wa USR1 -wt 2
set -eu

sweep=${SWEEP:?usage: SWEEP=entity/project/sweep_id, or sweeps/FILE.yaml, bsub < scripts/lsf_agents.sh}
cd "${LS_SUBCWD:-.}"
# CHANGE: how programs are found here, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder with the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${LSB_DJOB_NUMPROC:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

case "$sweep" in *.yaml|*.yml) set -- dlframe-agent "$sweep" ;; *) set -- wandb agent --forward-signals "$sweep" ;; esac
over='' agent=''
trap 'over=yes; [ -z "$agent" ] || kill -TERM "$agent"' USR1
trap : TERM # all of a job is sent it by bkill, the agent too; who waits for it must not die first
"$@" &
agent=$!
[ -z "$over" ] || kill -TERM "$agent"
while status=0; wait "$agent" || status=$?; kill -0 "$agent" 2>/dev/null; do :; done # a signal ends the waiting, not the agent
[ -z "$over" ] || exit 99
exit "$status"
