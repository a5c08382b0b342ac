#!/usr/bin/env bash
# Delete a queued resource and its slices, whatever runs on them; from then on they cost nothing. The bucket stays.
#
#   delete.sh NAME
#
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the call, do not make it
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse "--project --zone" "$@"
check_target

# --force: with its nodes. --quiet: no question. Returns when all is gone, so that watch.sh can create it anew.
queued delete "$name" --force --quiet
