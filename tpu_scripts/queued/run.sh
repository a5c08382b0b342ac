#!/usr/bin/env bash
# Start training on all workers and return. Training continues when this machine is switched off; to restart it after a
# failure, use watch.sh. Nothing changes on a worker that is already training.
#
#   run.sh NAME --type v5litepod-256 -- deberta-jax pretrain --output bucket/runs/base ...
#
#   NAME         name of the queued resource
#   --type       accelerator type as for create.sh (or TPU_TYPE); selects the compiler flags of xla_flags.sh
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the call instead of making it
#
# The command runs in the home folder, where the bucket is mounted as bucket/. Its exit code says what to do:
#   0            training is done
#   42           restart: it was preempted and has saved, a host was lost, or the watchdog ended it
#   127 to 255   restart: it was killed by a signal (128 + its number; 134 is how JAX itself aborts)
#   1, others    do not restart: the settings or the data are wrong
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../xla_flags.sh"
parse "--type --project --zone --" "$@"
check_type v4 v5litepod v5p v6e
check_target

libtpu_args=$(xla_flags "$(generation "$type")")
on_workers "$(quoted bash worker.sh start env "LIBTPU_INIT_ARGS=$libtpu_args" "${command[@]}")"
