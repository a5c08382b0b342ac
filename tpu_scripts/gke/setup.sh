#!/usr/bin/env bash
# Build the container image of the workloads from a wheel and gke/Dockerfile, and push it. All packages but the wheel have
# the versions of constraints.txt. Needs Docker 23 or newer (BuildKit).
#
#   setup.sh --wheel dist/deberta_jax-1.0.0-py3-none-any.whl --image REPOSITORY/deberta-jax:1
#
#   --wheel      wheel built by `python -m build --wheel`
#   --image      name and tag of the image, in a repository that the cluster may read; use a new tag for each image
#   --dry-run    print the calls instead of making them
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse "--wheel --image" "$@"
check_wheel
check_image

here=$(dirname "${BASH_SOURCE[0]}")
call docker build "--tag=$image" "--file=$here/Dockerfile" "--build-context=scripts=$here/.." \
  "--build-arg=WHEEL=${wheel##*/}" "$(dirname "$wheel")"
call docker push "$image"
