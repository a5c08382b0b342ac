#!/usr/bin/env bash
# Measures on a fresh machine with an NVIDIA GPU, from the repository's folder: bash tests/benchmarks/gpu_device.sh
#
# Copies this library into a folder of its own beside the packages that the machine has: its JAX, with the plugin for its
# GPU, and its PyTorch are the ones that are measured. With WHEELS=folder nothing is downloaded: the folder has the wheels
# of what is missing. That is 7 MB on a machine with jax, flax, optax, sentencepiece, safetensors, chex, pytest, torch,
# triton, transformers and einops: array_record, disentangled-flash, docstring_parser, flashdeberta, grain,
# orbax-checkpoint, portpicker, tensorboardX, typeguard and tyro.
# Arguments are those of `python -m tests.benchmarks.gpu`. Results and logs are in $OUT (default: runs/gpu).
# After -- comes another module with its arguments, such as
#     bash tests/benchmarks/gpu_device.sh -- tests.support.pretrain_tiny runs/tiny --corpus rows128 --seconds 240
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$out"

install=("$python" -m pip install --quiet --no-compile --no-deps --target "$site")
if [[ -n ${WHEELS:-} ]]; then
  "${install[@]}" --no-index "$WHEELS"/*.whl
else
  "$python" -m pip install --quiet '.[train,convert]' chex einops pytest 'transformers>=5,<6' torch
  "${install[@]}" flashdeberta==0.0.8 disentangled-flash==1.1.1
fi
# As a wheel has it: train and convert are parts of the library. Building one would need setuptools.
cp -r deberta_jax "$site"
cp -r train convert "$site/deberta_jax"
# The copy has to be found before the checkout's folders.
export PYTHONSAFEPATH=1 PYTHONPATH=$site:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

if [[ ${1:-} == -- ]]; then
  "$python" -m "${@:2}" 2>&1 | tee "$out/log"
  exit
fi
"$python" -m tests.benchmarks.gpu --results "$out" "$@" 2>&1 | tee "$out/log"
rm -rf "$out"/model* "$out"/compiled-* "$out"/reference.npy # large, and made again
