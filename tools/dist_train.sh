#!/usr/bin/env bash
# Train on several GPUs, or on the CPU where there is none.
#   bash tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# On several nodes, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
usage="usage: dist_train.sh CONFIG GPUS [flags of tools/train.py]"
config=${1:?$usage} gpus=${2:?$usage}
shift 2
source "$(dirname "$0")/launch.sh"
launch "$gpus" train.py "$config" "$@"
