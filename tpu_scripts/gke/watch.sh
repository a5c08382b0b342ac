#!/usr/bin/env bash
# Wait until an xpk workload has ended; the cluster itself starts it again where that helps. May be repeated.
#
#   watch.sh WORKLOAD --cluster CLUSTER
#
#   --cluster    (or TPU_CLUSTER)
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print every call that it may make, once; make none
#
# Exit status: 0 training is done, 1 a person is needed (after the last log lines, if it failed), 2 wrong usage.
# Nothing is deleted at the end: the slices go on costing money until `delete.sh CLUSTER --what cluster`.
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
case $status in # of xpk: 124 not ended after a week, 125 ended without success
  0) echo "$name is done" ;;
  125)
    logs || true
    echo "$name has failed; see the log above"
    exit 1
    ;;
  *)
    echo "xpk cannot tell whether $name has ended (its exit status: $status)"
    exit 1
    ;;
esac
