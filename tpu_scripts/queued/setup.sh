#!/usr/bin/env bash
# Make the workers of an ACTIVE queued resource ready: Python, the wheel with its [train] and [tpu] extras, and the
# bucket mounted at ~/bucket. Every worker gets the same wheel. May be repeated.
#
#   setup.sh NAME --wheel dist/deberta_jax-0.1.0-py3-none-any.whl --bucket BUCKET
#
#   --wheel      from `python -m build --wheel`
#   --bucket     name of a Cloud Storage bucket, without gs://
#   --project    (or TPU_PROJECT)
#   --zone       (or TPU_ZONE)
#   --dry-run    print the calls, do not make them
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse "--wheel --bucket --project --zone" "$@"
check_wheel
check_bucket
check_target

here=$(dirname "${BASH_SOURCE[0]}")
queued scp "$here/worker.sh" "$wheel" "$name:" --node=all --worker=all
on_workers "$(quoted bash worker.sh setup "${wheel##*/}" "$bucket")"
