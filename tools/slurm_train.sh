#!/usr/bin/env bash
# Train on a Slurm cluster.
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=8] [SRUN_ARGS="..."] \
#     bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [flags of tools/train.py]
set -euo pipefail
usage="usage: slurm_train.sh PARTITION JOB_NAME CONFIG [flags of tools/train.py]"
partition=${1:?$usage} job_name=${2:?$usage} config=${3:?$usage}
shift 3
source "$(dirname "$0")/slurm.sh"
submit "$partition" "$job_name" train.py "$config" "$@"
