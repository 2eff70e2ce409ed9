#!/usr/bin/env bash
# Test on several GPUs, or on the CPU where there is none.
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On several nodes, run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
usage="usage: dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]"
config=${1:?$usage} checkpoint=${2:?$usage} gpus=${3:?$usage}
shift 3
source "$(dirname "$0")/launch.sh"
launch "$gpus" test.py "$config" "$checkpoint" "$@"
