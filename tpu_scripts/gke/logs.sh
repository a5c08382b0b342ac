#!/usr/bin/env bash
# Print the last log lines of the workers of a workload, oldest first: time, pod, line. Deleted workers are included.
#
#   logs.sh WORKLOAD --cluster CLUSTER [--lines 100] > logs.txt
#
#   --cluster    name of the GKE cluster (or TPU_CLUSTER)
#   --lines      number of lines of all workers together (default: 100)
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the call instead of making it
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
