# Sourced by slurm_train.sh and slurm_test.sh.

# submit PARTITION JOB_NAME SCRIPT ARGUMENTS...: check once, then one task a GPU.
submit() {
  local partition=$1 job_name=$2 script srun_args
  script="$(dirname "${BASH_SOURCE[0]}")/$3"
  shift 3
  local gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
  read -ra srun_args <<<"${SRUN_ARGS:-}"
  if [[ ! "$gpus $per_node" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]]; then
    echo "GPUS and GPUS_PER_NODE must be positive numbers, got: $gpus, $per_node" >&2
    exit 2
  fi
  ((per_node <= gpus)) || per_node=$gpus
  python "$script" "$@" --check # a mistake is told before the job queues
  exec srun --partition "$partition" --job-name "$job_name" \
    --gres "gpu:$per_node" --ntasks "$gpus" --ntasks-per-node "$per_node" \
    --cpus-per-task "${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    python -u "$script" "$@" --launcher slurm
}
