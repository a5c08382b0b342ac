#!/usr/bin/env bash
# Start training as an xpk workload: a JobSet, which Kueue starts when there is room and which starts itself again.
#
#   run.sh WORKLOAD --cluster CLUSTER --type v5litepod-256 --image IMAGE \
#     -- deberta-jax pretrain --output /bucket/runs/base ...
#
#   --cluster    (or TPU_CLUSTER)
#   --type       as given to create.sh (or TPU_TYPE); also chooses the flags of xla_flags.sh
#   --slices     how many slices of this type (default 1)
#   --image      as given to setup.sh
#   --restarts   how often it may start itself again (default 50; a JobSet does not know whether a start got further)
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the call, do not make it
#
# The command's exit code is a contract: 0 done; 42 (preempted after a save, a lost host, the watchdog) and 127 to 255
# (killed by a signal) start all workers again; 1 and others are mistakes in settings or data and end the workload.
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

# exec: xpk runs the command in a subshell, to which SIGTERM goes; so the program itself must be that process.
libtpu_args=$(xla_flags "$(generation "$type")")
on_cluster workload create "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image" \
  "--max-restarts=$restarts" --restart-on-exit-codes=42 --termination-grace-period-seconds=120 \
  "--command=$(quoted exec env "LIBTPU_INIT_ARGS=$libtpu_args" "${command[@]}")"
