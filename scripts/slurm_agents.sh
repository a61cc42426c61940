#!/bin/bash
# Start W&B agents on a sweep, one in each job of an array. From the project's root:
#   wandb sweep sweeps/vae_beta.yaml                          # once, prints entity/project/sweep_id
#   mkdir -p runs && sbatch scripts/slurm_agents.sh entity/project/sweep_id
#SBATCH --job-name=dlframe-agents
#SBATCH --output=runs/slurm-%A_%a.log
# CHANGE: how many agents, at most as many as there are trials
#SBATCH --array=1-4
# CHANGE: the partition of your cluster; `sinfo` lists them
#SBATCH --partition=gpu
# CHANGE: what an agent needs; leave the GPU out for small models
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
# CHANGE: longer than one trial; an agent takes trials until the sweep is done or this is over
#SBATCH --time=08:00:00
set -eu

sweep=${1:?usage: sbatch scripts/slurm_agents.sh entity/project/sweep_id}
cd "${SLURM_SUBMIT_DIR:-.}"
# CHANGE: how programs are found here, for example `module load python` or `source ~/env/bin/activate`
export PATH="$PWD/.venv/bin:$PATH"
# CHANGE: the folder with the data, or the name of a profile: export DEVICE_NAME=cluster
export DATA_ROOT="${DATA_ROOT:-$HOME/.cache/dlframe/data}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE
exec srun wandb agent "$sweep"
