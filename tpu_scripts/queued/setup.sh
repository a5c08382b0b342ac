#!/usr/bin/env bash
# Prepare the workers of an ACTIVE queued resource: install Python and the wheel with its [train] and [tpu] extras, and
# mount the bucket at ~/bucket. Every worker gets the same wheel, and all other packages in the versions of
# constraints.txt. It is safe to run this again.
#
#   setup.sh NAME --wheel dist/deberta_jax-1.0.0-py3-none-any.whl --bucket BUCKET
#
#   NAME         name of the queued resource
#   --wheel      wheel built by `python -m build --wheel`
#   --bucket     name of a Cloud Storage bucket, without gs://
#   --project    ID of the Google Cloud project (or TPU_PROJECT)
#   --zone       zone of the TPUs, such as us-west4-a (or TPU_ZONE)
#   --dry-run    print the calls instead of making them
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
parse "--wheel --bucket --project --zone" "$@"
check_wheel
check_bucket
check_target

here=$(dirname "${BASH_SOURCE[0]}")
queued scp "$here/worker.sh" "$here/../constraints.txt" "$wheel" "$name:" --node=all --worker=all
on_workers "$(quoted bash worker.sh setup "${wheel##*/}" "$bucket")"
