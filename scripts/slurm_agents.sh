#!/bin/bash
# Runs agents of a sweep, one in each job of an array. From the project's root, with an account at W&B
#   wandb sweep sweeps/vae_beta.yaml                # once, prints entity/project/sweep_id
#   mkdir -p runs && sbatch scripts/slurm_agents.sh entity/project/sweep_id
# or without one
#   mkdir -p runs && sbatch scripts/slurm_agents.sh sweeps/vae_beta.yaml [FOLDER] [--trials N ...]
# Shortly before the end of its time, the agent's trial saves a checkpoint. The job is queued again, and there the trial resumes.
#SBATCH --job-name=dlframe-agents
#SBATCH --output=runs/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
# CHANGE: number of agents, at most the number of trials
#SBATCH --array=1-4
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: the GPUs of an agent; delete the line for small models
#SBATCH --gres=gpu:1
# CHANGE: cores, to load data
#SBATCH --cpus-per-task=4
# CHANGE: memory of the machine, not of the GPU
#SBATCH --mem=16G
# CHANGE: time limit of one job; an agent runs trials until the sweep is finished or the time is over
#SBATCH --time=08:00:00
# CHANGE: seconds from the signal to the end, more than a step and a checkpoint take (B: the signal goes to this script, which sends SIGTERM to the agent)
#SBATCH --signal=B:USR1@120
set -eu

sweep=${1:?usage: sbatch scripts/slurm_agents.sh entity/project/sweep_id, or sweeps/FILE.yaml [FOLDER ...]}
cd "${SLURM_SUBMIT_DIR:-.}"
# CHANGE: the path of the programs, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder of the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

case "$sweep" in *.yaml|*.yml) set -- dlframe-agent "$@" ;; *) set -- wandb agent --forward-signals "$@" ;; esac
over='' agent=''
trap 'over=yes; [ -z "$agent" ] || kill -TERM "$agent"' USR1
trap : TERM # scancel sends SIGTERM to this script and to the agent; this script must outlive the agent
"$@" &
agent=$!
[ -z "$over" ] || kill -TERM "$agent"
while status=0; wait "$agent" || status=$?; kill -0 "$agent" 2>/dev/null; do :; done # a signal interrupts `wait`, not the agent
# not SLURM_JOB_ID, which for one job of an array is the number of the whole array
[ -z "$over" ] || scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
exit "$status"
