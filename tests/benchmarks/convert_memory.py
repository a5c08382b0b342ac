"""Measures the peak memory of `deberta-jax convert`; the limit is the float32 model plus 1.3 times the file size.

    python -m tests.benchmarks.convert_memory [--case v3-base-bin] [--folder /tmp]

Writes random weights in the sizes and number formats of published models, converts each in a process of its own and
reads the largest resident memory of that process (VmHWM), which includes the interpreter, the libraries and the mapped
pages of the file. Runs on Linux only. deberta-v2-xxlarge needs 10 GB of temporary disk space and a few minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deberta_jax import DebertaConfig
from deberta_jax.convert.mapping import entries
from tests.support.pytorch_files import bin_bytes, write_json

CASES = {  # name: (released size, number format, file format, shards)
    "v3-base-bin": ("deberta-v3-base", np.float16, "bin", 1),
    "v3-base-safetensors": ("deberta-v3-base", np.float32, "safetensors", 1),
    "v2-xxlarge-bin": ("deberta-v2-xxlarge", np.float16, "bin", 4),
    "v2-xxlarge-safetensors": ("deberta-v2-xxlarge", np.float16, "safetensors", 4),
}
HEADS = ("deberta", "mlm_head")
FACTOR = 1.3
CHILD = """
import sys
from deberta_jax.__main__ import main
status = main(["convert", *sys.argv[1:]])
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


def write_model(folder: Path, config: DebertaConfig, dtype: type, kind: str, shards: int) -> tuple[int, int]:
    """Writes random weights and returns the bytes of the files and of the model in float32."""
    from safetensors.numpy import save_file

    write_json(folder, config)
    table = [entry for entry in entries(config) if entry.part in HEADS and not entry.key.endswith("_weight")]
    rng, weight_map, written, size = np.random.default_rng(0), {}, 0, 0
    for i in range(shards):
        state = {
            entry.key: (rng.standard_normal(entry.torch_shape, np.float32) * 0.02).astype(dtype)
            for entry in table[i::shards]
        }
        path = folder / (f"part-{i}.{kind}" if shards > 1 else {"bin": "pytorch_model.bin"}.get(kind, f"model.{kind}"))
        if kind == "bin":
            path.write_bytes(bin_bytes(state))
        else:
            save_file(state, path)
        weight_map |= dict.fromkeys(state, path.name)
        written += path.stat().st_size
        size += 4 * sum(array.size for array in state.values())
    if shards > 1:
        name = "pytorch_model.bin" if kind == "bin" else f"model.{kind}"
        (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return written, size


def measure(source: Path, destination: Path) -> tuple[int, float]:
    """Converts in a fresh process and returns its largest resident memory in bytes, and the seconds it took."""
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, str(source), str(destination)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.stderr)
    return int(process.stdout.split()[-1]) * 1024, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="may be repeated (default: all)")
    parser.add_argument("--folder", help="folder for temporary files")
    options = parser.parse_args()
    print(f"{'MB':24}{'file':>8}{'float32':>9}{'peak':>8}{'limit':>8}{'above float32 / file':>22}{'seconds':>9}")
    over_limit = []
    for case in options.case or CASES:
        name, dtype, kind, shards = CASES[case]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            written, size = write_model(Path(folder) / "source", DebertaConfig.named(name), dtype, kind, shards)
            peak, seconds = measure(Path(folder) / "source", Path(folder) / "ours")
        limit = size + FACTOR * written
        row = "".join(f"{value / 1e6:{width}.0f}" for value, width in ((written, 8), (size, 9), (peak, 8), (limit, 8)))
        print(f"{case:24}{row}{(peak - size) / written:22.2f}{seconds:9.0f}", flush=True)
        if peak > limit:
            over_limit.append(case)
    if over_limit:
        sys.exit(f"over the limit: {', '.join(over_limit)}")


if __name__ == "__main__":
    main()
