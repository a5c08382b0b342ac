#!/usr/bin/env bash
# Create a GKE cluster with TPU slices, through xpk, and let its workloads see a bucket as /bucket.
# The slices cost money from now on until `delete.sh CLUSTER --what cluster`, whether anything runs or not.
#
#   create.sh CLUSTER --type v5litepod-256 --tier spot --bucket BUCKET
#
#   --type       accelerator type: v4-8, v5litepod-256, v5p-64, v6e-256, tpu7x-4x4x4, ... (or TPU_TYPE)
#   --tier       on-demand, spot (may be taken away at any time), flex, reservation:NAME
#   --slices     how many slices of this type (default 1)
#   --bucket     name of a Cloud Storage bucket, without gs://
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the calls, do not make them
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
tier='' slices=1
parse "--type --tier --slices --bucket --project --zone" "$@"
check_type v4 v5litepod v5p v6e tpu7x
check --tier "$tier" 'on-demand|spot|flex|reservation:[a-z].*' 'on-demand, spot, flex, reservation:NAME'
check_count --slices "$slices"
check_bucket
check_target

cluster=$name
on_cluster cluster create "--tpu-type=$type" "--num-slices=$slices" "--${tier/:/=}" --enable-gcsfuse-csi-driver
# No cache of metadata, as in queued/worker.sh. --size is asked for, though a bucket has none.
on_cluster storage attach "$bucket" --type=gcsfuse "--bucket=$bucket" --mount-point=/bucket --readonly=false \
  --auto-mount=true --size=1 --no-prefetch-metadata \
  --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
