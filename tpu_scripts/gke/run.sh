#!/usr/bin/env bash
# Start training as an xpk workload: a JobSet that Kueue starts when there is capacity, and that restarts by itself.
#
#   run.sh WORKLOAD --cluster CLUSTER --type v5litepod-256 --image IMAGE \
#     -- deberta-jax pretrain --output /bucket/runs/base ...
#
#   --cluster    name of the GKE cluster (or TPU_CLUSTER)
#   --type       accelerator type as for create.sh (or TPU_TYPE); also selects the compiler flags of xla_flags.sh
#   --slices     number of slices of this type (default: 1)
#   --image      image as for setup.sh
#   --restarts   number of restarts before the workload fails (default: 50); a JobSet counts restarts with progress too
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the call instead of making it
#
# The exit code of the command says what to do: 0 means that training is done; 42 (preempted after a save, a lost host,
# the watchdog) and 127 to 255 (killed by a signal) restart all workers; 1 and others mean that the settings or the data
# are wrong, and the workload fails.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../xla_flags.sh"
slices=1 restarts=50
parse "--cluster --type --slices --image --restarts --project --zone --" "$@"
check_type v4 v5litepod v5p v6e tpu7x
check_count --slices "$slices"
check_count --restarts "$restarts"
check_image
check_cluster
check_target

# xpk runs the command in a subshell and sends SIGTERM to it. With exec, the training program replaces that subshell.
libtpu_args=$(xla_flags "$(generation "$type")")
on_cluster workload create "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image" \
  "--max-restarts=$restarts" --restart-on-exit-codes=42 --termination-grace-period-seconds=120 \
  "--command=$(quoted exec env "LIBTPU_INIT_ARGS=$libtpu_args" "${command[@]}")"
