#!/usr/bin/env bash
# Delete a queued resource and its slices, including anything that runs on them. They stop costing money. The bucket is
# kept.
#
#   delete.sh NAME
#
#   NAME         name of the queued resource
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the call instead of making it
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse "--project --zone" "$@"
check_target

# --force deletes the nodes as well, --quiet asks no question. The call returns when all is deleted, so that watch.sh
# can create a resource with the same name.
queued delete "$name" --force --quiet
