#!/bin/bash
# One run. Submitted again, or requeued, it goes on from its last checkpoint. From the project's root:
#   mkdir -p runs && sbatch scripts/slurm_run.sh first -p dataset MNIST -p train_for '20 epochs'
#SBATCH --job-name=dlframe-run
#SBATCH --output=runs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: what the run needs; leave the GPU out for small models
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
# CHANGE: if the run takes longer, submit it again
#SBATCH --time=08:00:00
# It is told two minutes before the end, saves a checkpoint and stops; otherwise at most the time since the last one (`save_every`) is lost
#SBATCH --signal=USR1@120
set -eu

name=${1:?usage: sbatch scripts/slurm_run.sh NAME [-p parameter value ...]}
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
