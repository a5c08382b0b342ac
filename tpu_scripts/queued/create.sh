#!/usr/bin/env bash
# Request a Cloud TPU slice as a queued resource. The request waits until there is capacity (WAITING_FOR_RESOURCES,
# PROVISIONING). As soon as it is ACTIVE the slice costs money, whether anything runs or not, until you run delete.sh.
#
#   create.sh NAME --type v5litepod-256 --tier spot
#
#   NAME         name of the queued resource and its node
#   --type       accelerator type: v4-8, v5litepod-256, v5p-64, v6e-256, ... (or TPU_TYPE); for TPU7x see gke/
#   --tier       on-demand, spot (may be preempted at any time), reserved or guaranteed
#   --slices     number of slices of this type, connected by the data-center network (default: 1)
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the call instead of making it
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
