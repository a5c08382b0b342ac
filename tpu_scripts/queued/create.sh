#!/usr/bin/env bash
# Ask for a Cloud TPU slice as a queued resource. It waits in the queue until there is room (WAITING_FOR_RESOURCES,
# PROVISIONING); from ACTIVE on it costs money until delete.sh, whether anything runs or not.
#
#   create.sh NAME --type v5litepod-256 --tier spot
#
#   NAME         of the queued resource, and of its node
#   --type       accelerator type: v4-8, v5litepod-256, v5p-64, v6e-256, ... (or TPU_TYPE); TPU7x: see gke/
#   --tier       on-demand, spot (may be taken away at any time), reserved, guaranteed
#   --slices     how many slices of this type, joined over the data center's network (default 1)
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the call, do not make it
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
tier='' slices=1
parse "--type --tier --slices --project --zone" "$@"
check_type v4 v5litepod v5p v6e
check --tier "$tier" 'on-demand|spot|reserved|guaranteed' 'on-demand, spot, reserved, guaranteed'
check_count --slices "$slices"
check_target

declare -A runtime=([v4]=tpu-ubuntu2204-base [v5e]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e)
options=("--accelerator-type=$type" "--runtime-version=${runtime[$(generation "$type")]}")
if ((slices == 1)); then options+=("--node-id=$name"); else options+=("--node-count=$slices" "--node-prefix=$name"); fi
if [[ $tier != on-demand ]]; then options+=("--$tier"); fi
queued create "$name" "${options[@]}"
