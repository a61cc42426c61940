#!/bin/bash
# Trains one run in one job. From the project's root:
#   mkdir -p runs && sbatch scripts/slurm_run.sh first -p dataset MNIST -p train_for '20 epochs'
# At the time limit the run saves a checkpoint and stops. Resume it with slurm_requeue.sh and the same arguments.
#SBATCH --job-name=dlframe-run
#SBATCH --output=runs/slurm-%j.log
#SBATCH --no-requeue
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: the GPUs of the run; delete the line for small models
#SBATCH --gres=gpu:1
# CHANGE: cores, to load data
#SBATCH --cpus-per-task=4
# CHANGE: memory of the machine, not of the GPU
#SBATCH --mem=16G
# CHANGE: time limit, longer than the run
#SBATCH --time=08:00:00
set -eu

name=${1:?usage: sbatch scripts/slurm_run.sh NAME [-p parameter value ...]}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
# CHANGE: the path of the programs, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder of the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

mkdir -p "$RUNS_ROOT"
exec srun papermill --engine dlframe nbs/experiments/train.ipynb "$RUNS_ROOT/$name.ipynb" "$@" -r name "$name"
