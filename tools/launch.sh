# Sourced by dist_train.sh and dist_test.sh.

# launch GPUS SCRIPT ARGUMENTS...: check once, then one process a GPU under torchrun.
# SIGTERM and SIGUSR1 make the ranks save and exit with 75.
launch() {
  local gpus=$1 script
  script="$(dirname "${BASH_SOURCE[0]}")/$2"
  shift 2
  if [[ ! $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "GPUS must be a positive number (processes per node), got: $gpus" >&2
    exit 2
  fi
  # a mistake is told once, not by every process
  VARCON_PROCESSES=$((gpus * ${NNODES:-1})) python "$script" "$@" --check
  export VARCON_CHECKED=1

  local rendezvous=(--standalone)
  if [[ ${NNODES:-1} != 1 || -n ${PORT:-} ]]; then
    rendezvous=(
      --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}"
      --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}"
    )
  fi
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  exec python -m varcon_plugin.commands.ranks "${rendezvous[@]}" --nproc-per-node "$gpus" \
    "$script" "$@" --launcher pytorch
}
