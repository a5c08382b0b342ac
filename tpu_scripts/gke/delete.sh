#!/usr/bin/env bash
# Delete a workload (it stops), or the whole cluster; the slices cost money until the cluster is deleted.
# The bucket stays.
#
#   delete.sh WORKLOAD --cluster CLUSTER
#   delete.sh CLUSTER --what cluster
#
#   --what       workload (default), cluster
#   --cluster    of the workload (or TPU_CLUSTER)
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the call, do not make it
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
