#!/bin/bash
# One run in as many jobs as it takes. Told that its time is over, it saves a checkpoint, and the job is queued again; so it is if its
# node is lost. Each time, and when it is submitted again by hand, it goes on from its last checkpoint. From the project's root:
#   mkdir -p runs && sbatch scripts/slurm_requeue.sh first -p dataset MNIST -p train_for '500 epochs'
#SBATCH --job-name=dlframe-run
#SBATCH --output=runs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: what the run needs; leave the GPU out for small models
#SBATCH --gres=gpu:1
# CHANGE: cores, for the loading of data
#SBATCH --cpus-per-task=4
# CHANGE: memory of the machine, not of the GPU
#SBATCH --mem=16G
# CHANGE: of one job; short ones start sooner
#SBATCH --time=04:00:00
# CHANGE: how many seconds before the end it is told, longer than a step and a checkpoint take
#SBATCH --signal=USR1@120
set -eu

name=${1:?usage: sbatch scripts/slurm_requeue.sh NAME [-p parameter value ...]}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
# CHANGE: how programs are found here, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder with the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

run="$RUNS_ROOT/$name"
[ ! -e "$run/manifest.json" ] || set -- "$@" -r resume "$run"
mkdir -p "$RUNS_ROOT"
exec srun papermill --engine dlframe nbs/experiments/train.ipynb "$run-${SLURM_JOB_ID:-0}.${SLURM_RESTART_COUNT:-0}.ipynb" "$@" -r name "$name"
