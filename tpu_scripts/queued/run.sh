#!/usr/bin/env bash
# Start training on all workers at once and return. It goes on when this machine is switched off; see watch.sh.
# A worker that is training already is left alone.
#
#   run.sh NAME --type v5litepod-256 -- deberta-jax pretrain --output bucket/runs/base ...
#
#   --type       as given to create.sh (or TPU_TYPE): chooses the flags of xla_flags.sh
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the call, do not make it
#
# The command runs in the home folder, where the bucket is mounted as bucket/. Its exit code is a contract:
#   0            done
#   42           start me again: preempted after a save, a lost host, the watchdog
#   127 to 255   start me again: killed by a signal (128 + its number; 134 is an abort of JAX's own)
#   1, others    a mistake in the settings or the data: starting again would not help
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../xla_flags.sh"
parse "--type --project --zone --" "$@"
check_type v4 v5litepod v5p v6e
check_target

libtpu_args=$(xla_flags "$(generation "$type")")
on_workers "$(quoted bash worker.sh start env "LIBTPU_INIT_ARGS=$libtpu_args" "${command[@]}")"
