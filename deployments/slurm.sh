#!/bin/bash
# An array of workers that share one workspace: each takes conditions and seeds that are free, and
# waits for the others at the end. The same line again, later or beside it, goes on or joins in.
#
#   export MLFLOW_TRACKING_URI=http://mlflow.example:5000      # and its login, see README.md
#   sbatch --array=0-7 deployments/slurm.sh paper /shared/runs/paper training.rounds=30
#
# The workspace is on a file system whose locks all nodes see; see README.md, "Locks".
#SBATCH --job-name=sdcore
#SBATCH --array=0-3
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=INT@180
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

usage="usage: sbatch slurm.sh EXPERIMENT WORKSPACE [SETTING=VALUE ...]"
experiment=${1:?$usage}
workspace=${2:?$usage}
: "${MLFLOW_TRACKING_URI:?name a server that all nodes reach: MLflow in a file is for one machine}"

# Prefect's server of each job listens on its own node, so its tables are there too.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PREFECT_SERVER_DATABASE_CONNECTION_URL="sqlite+aiosqlite:///$scratch/prefect.db"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

srun sdcore run "$experiment" "${@:3}" --workspace "$workspace"
