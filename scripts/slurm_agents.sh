#!/bin/bash
# Agents on a sweep, one in each job of an array. From the project's root, with an account at W&B
#   wandb sweep sweeps/vae_beta.yaml                # once, prints entity/project/sweep_id
#   mkdir -p runs && sbatch scripts/slurm_agents.sh entity/project/sweep_id
# or without one
#   mkdir -p runs && sbatch scripts/slurm_agents.sh sweeps/vae_beta.yaml [FOLDER] [--trials N ...]
# Told that its time is over, an agent lets its trial save a checkpoint, and its job is queued again, in which the trial goes on.
#SBATCH --job-name=dlframe-agents
#SBATCH --output=runs/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# CHANGE: how many agents, at most as many as there are trials
#SBATCH --array=1-4
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: what an agent needs; leave the GPU out for small models
#SBATCH --gres=gpu:1
# CHANGE: cores, for the loading of data
#SBATCH --cpus-per-task=4
# CHANGE: memory of the machine, not of the GPU
#SBATCH --mem=16G
# CHANGE: of one job; an agent takes trials until the sweep is done or this is over
#SBATCH --time=08:00:00
# CHANGE: how many seconds before the end it is told (B: this script is, and asks the agent), longer than a step and a checkpoint take
#SBATCH --signal=B:USR1@120
set -eu

sweep=${1:?usage: sbatch scripts/slurm_agents.sh entity/project/sweep_id, or sweeps/FILE.yaml [FOLDER ...]}
cd "${SLURM_SUBMIT_DIR:-.}"
# CHANGE: how programs are found here, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder with the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

case "$sweep" in *.yaml|*.yml) set -- dlframe-agent "$@" ;; *) set -- wandb agent --forward-signals "$@" ;; esac
over='' agent=''
trap 'over=yes; [ -z "$agent" ] || kill -TERM "$agent"' USR1
trap : TERM # all of a job is sent it by scancel, the agent too; who waits for it must not die first
"$@" &
agent=$!
[ -z "$over" ] || kill -TERM "$agent"
while status=0; wait "$agent" || status=$?; kill -0 "$agent" 2>/dev/null; do :; done # a signal ends the waiting, not the agent
# not SLURM_JOB_ID, which for one of them is that of the whole array
[ -z "$over" ] || scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
exit "$status"
