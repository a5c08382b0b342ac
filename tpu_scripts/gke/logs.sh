#!/usr/bin/env bash
# The last lines that the workers of a workload have logged, oldest first: time, pod, line. Also of workers now gone.
#
#   logs.sh WORKLOAD --cluster CLUSTER [--lines 100] > logs.txt
#
#   --cluster    (or TPU_CLUSTER)
#   --lines      how many, of all workers together (default 100)
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the call, do not make it
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
lines=100
parse "--cluster --lines --project --zone" "$@"
check_count --lines "$lines"
check_cluster
check_target

filter="resource.type=k8s_container AND resource.labels.cluster_name=$cluster"
filter+=" AND resource.labels.pod_name:$name-slice-job-" # xpk names pods WORKLOAD-slice-job-SLICE-WORKER-...
call gcloud logging read "$filter" "--limit=$lines" --freshness=30d \
  '--format=value(timestamp,resource.labels.pod_name,textPayload)' "--project=$project" | tac
