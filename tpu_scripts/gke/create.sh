#!/usr/bin/env bash
# Create a GKE cluster with TPU slices by xpk, and mount a bucket as /bucket in its workloads. The slices cost money,
# whether anything runs or not, until you run `delete.sh CLUSTER --what cluster`.
#
#   create.sh CLUSTER --type v5litepod-256 --tier spot --bucket BUCKET
#
#   CLUSTER      name of the new cluster
#   --type       accelerator type: v4-8, v5litepod-256, v5p-64, v6e-256, tpu7x-4x4x4, ... (or TPU_TYPE)
#   --tier       on-demand, spot (may be preempted at any time), flex or reservation:NAME
#   --slices     number of slices of this type (default: 1)
#   --bucket     name of a Cloud Storage bucket, without gs://
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the calls instead of making them
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
# No metadata cache, for the reason in queued/worker.sh. xpk requires --size, although a bucket has no size.
on_cluster storage attach "$bucket" --type=gcsfuse "--bucket=$bucket" --mount-point=/bucket --readonly=false \
  --auto-mount=true --size=1 --no-prefetch-metadata \
  --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
