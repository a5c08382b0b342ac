#!/usr/bin/env bash
# The last lines of the training log of each worker, each line with the worker's host name before it.
#
#   logs.sh NAME [--lines 100] [--worker 0] > logs.txt
#
#   --lines      how many of each worker (default 100)
#   --worker     one worker's number, or all (default)
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the call, do not make it
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
lines=100 worker=all
parse "--lines --worker --project --zone" "$@"
check_count --lines "$lines"
check --worker "$worker" 'all|[0-9]+' 'all, or the number of a worker, from 0'
check_target

# On stdout: --output-directory of this gcloud command writes to a folder named None (seen in gcloud 528).
on_workers "$(quoted bash worker.sh logs "$lines")" "$worker"
