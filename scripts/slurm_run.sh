#!/bin/bash
# One run that fits into one job. From the project's root:
#   mkdir -p runs && sbatch scripts/slurm_run.sh first -p dataset MNIST -p train_for '20 epochs'
# If its time is over it saves a checkpoint and stops; the same words with slurm_requeue.sh go on from there.
#SBATCH --job-name=dlframe-run
#SBATCH --output=runs/slurm-%j.log
#SBATCH --no-requeue
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: what the run needs; leave the GPU out for small models
#SBATCH --gres=gpu:1
# CHANGE: cores, for the loading of data
#SBATCH --cpus-per-task=4
# CHANGE: memory of the machine, not of the GPU
#SBATCH --mem=16G
# CHANGE: longer than the run
#SBATCH --time=08:00:00
set -eu

name=${1:?usage: sbatch scripts/slurm_run.sh NAME [-p parameter value ...]}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
# CHANGE: how programs are found here, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder with the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE RUNS_ROOT="${RUNS_ROOT:-$PWD/runs}"

mkdir -p "$RUNS_ROOT"
exec srun papermill --engine dlframe nbs/experiments/train.ipynb "$RUNS_ROOT/$name.ipynb" "$@" -r name "$name"
