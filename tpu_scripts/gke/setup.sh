#!/usr/bin/env bash
# Build the container image that workloads run, from a wheel and gke/Dockerfile, and push it.
#
#   setup.sh --wheel dist/deberta_jax-0.1.0-py3-none-any.whl --image REPOSITORY/deberta-jax:1
#
#   --wheel      from `python -m build --wheel`
#   --image      where the image goes, with a tag: a repository that the cluster may read. A tag is better never reused
#   --dry-run    print the calls, do not make them
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse "--wheel --image" "$@"
check_wheel
check_image

call docker build "--tag=$image" "--file=$(dirname "${BASH_SOURCE[0]}")/Dockerfile" \
  "--build-arg=WHEEL=${wheel##*/}" "$(dirname "$wheel")"
call docker push "$image"
