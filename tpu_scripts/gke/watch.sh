#!/usr/bin/env bash
# Wait until an xpk workload has ended. The cluster restarts it when that helps. It is safe to run this again.
#
#   watch.sh WORKLOAD --cluster CLUSTER
#
#   --cluster    name of the GKE cluster (or TPU_CLUSTER)
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print every call that it may make once, instead of making any
#
# Exit status: 0 training is done, 1 it needs your help (the last log lines are printed if it failed), 2 wrong usage.
# The slices are not deleted at the end and cost money until you run `delete.sh CLUSTER --what cluster`.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse "--cluster --project --zone" "$@"
check_cluster
check_target

logs() {
  "$(dirname "${BASH_SOURCE[0]}")/logs.sh" "$name" "--cluster=$cluster" "--project=$project" "--zone=$zone" \
    ${dry_run:+--dry-run}
}

status=0
on_cluster workload list "--wait-for-job-completion=$name" || status=$?
if [[ $dry_run ]]; then
  logs
  exit
fi
case $status in # exit status of xpk: 124 if it has not ended after a week, 125 if it failed
  0) echo "$name is done" ;;
  125)
    logs || true
    echo "$name has failed; see the log above"
    exit 1
    ;;
  *)
    echo "cannot tell whether $name has ended (exit status of xpk: $status)"
    exit 1
    ;;
esac
