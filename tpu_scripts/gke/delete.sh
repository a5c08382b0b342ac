#!/usr/bin/env bash
# Delete a workload, which stops it, or the whole cluster. The slices cost money until the cluster is deleted. The
# bucket is kept.
#
#   delete.sh WORKLOAD --cluster CLUSTER
#   delete.sh CLUSTER --what cluster
#
#   --what       workload or cluster (default: workload)
#   --cluster    name of the GKE cluster that the workload runs on (or TPU_CLUSTER)
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the call instead of making it
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
what=workload
parse "--what --cluster --project --zone" "$@"
check --what "$what" 'workload|cluster' 'workload, cluster'
check_target

if [[ $what == cluster ]]; then
  cluster=$name
  on_cluster cluster delete --force
else
  check_cluster
  on_cluster workload delete "--workload=$name" --force
fi
