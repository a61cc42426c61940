#!/bin/bash
# Trains one run in several jobs. Shortly before the end of a job the run saves a checkpoint, and the job is queued again, also if its
# node is lost. Each job, also one submitted by hand, resumes from the last checkpoint. From the project's root:
#   mkdir -p runs && sbatch scripts/slurm_requeue.sh first -p dataset MNIST -p train_for '500 epochs'
#SBATCH --job-name=dlframe-run
#SBATCH --output=runs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: the GPUs of the run; delete the line for small models
#SBATCH --gres=gpu:1
# CHANGE: cores, to load data
#SBATCH --cpus-per-task=4
# CHANGE: memory of the machine, not of the GPU
#SBATCH --mem=16G
# CHANGE: time limit of one job; short jobs start sooner
#SBATCH --time=04:00:00
# CHANGE: seconds from the signal to the end, more than a step and a checkpoint take
#SBATCH --signal=USR1@120
set -eu

name=${1:?usage: sbatch scripts/slurm_requeue.sh NAME [-p parameter value ...]}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
# CHANGE: the path of the programs, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder of the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

run="$RUNS_ROOT/$name"
[ ! -e "$run/manifest.json" ] || set -- "$@" -r resume "$run"
mkdir -p "$RUNS_ROOT"
exec srun papermill --engine dlframe nbs/experiments/train.ipynb "$run-${SLURM_JOB_ID:-0}.${SLURM_RESTART_COUNT:-0}.ipynb" "$@" -r name "$name"
