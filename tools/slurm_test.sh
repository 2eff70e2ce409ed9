#!/usr/bin/env bash
# Test on a Slurm cluster.
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=8] [SRUN_ARGS="..."] \
#     bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [flags of tools/test.py]
set -euo pipefail
usage="usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [flags of tools/test.py]"
partition=${1:?$usage} job_name=${2:?$usage} config=${3:?$usage} checkpoint=${4:?$usage}
shift 4
source "$(dirname "$0")/slurm.sh"
submit "$partition" "$job_name" test.py "$config" "$checkpoint" "$@"
