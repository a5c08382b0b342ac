#!/usr/bin/env bash
# Print the last lines of the training log of each worker, each line after the host name of the worker.
#
#   logs.sh NAME [--lines 100] [--worker 0] > logs.txt
#
#   NAME         name of the queued resource
#   --lines      number of lines per worker (default: 100)
#   --worker     number of a worker, or all (default: all)
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the call instead of making it
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
lines=100 worker=all
parse "--lines --worker --project --zone" "$@"
check_count --lines "$lines"
check --worker "$worker" 'all|[0-9]+' 'all, or the number of a worker, from 0'
check_target

# Logs are on stdout, because --output-directory of this gcloud command writes to a folder named None (gcloud 528).
on_workers "$(quoted bash worker.sh logs "$lines")" "$worker"
