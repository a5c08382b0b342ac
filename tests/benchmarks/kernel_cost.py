"""What the TPU compiler schedules for the attention kernels: compiler estimates, no device is timed.

    python -m tests.benchmarks.kernel_cost [--chips v4 v5e v5p v6e] [--lengths 128 256 512 1024 2048] [--dropout 0 0.1]

Needs libtpu (`pip install "jax[tpu]"`), whose compiler runs on any Linux host. For each case a process compiles one
kernel ahead of time with its schedule dumped; printed are the VLIW bundles (about cycles) of one sequence and head:
those of a grid step, divided by its sequences and heads, times the tiles of a sequence. 12 heads of 64, bfloat16,
segments on, both relative terms. Left out: waiting for memory, and the block that only the first sequence of a group
of heads runs (it multiplies the table for the first head, or zeroes the tables' gradients). Beside the bundles stands
the unit that has the most to do, and in which share of its slots.
"""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
HEADS, HEAD_SIZE, HEADS_A_STEP = 12, 64, 2
TOKENS = 131_072  # so many that the compiler leaves the kernel's arguments in HBM, where a model has them


def compile_kernel(kernel: str, topology: str, length: int, rate: float) -> None:
    """Compiles one kernel for the topology's first device; what comes of it is the compiler's dump."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from deberta_jax.kernels.backward import backward
    from deberta_jax.kernels.forward import forward
    from deberta_jax.kernels.forward_128 import forward_short
    from deberta_jax.kernels.fused import tiling
    from deberta_jax.kernels.tiles import Plan

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    chunk, chunks = tiling(length, jnp.bfloat16, device.device_kind)
    plan = Plan(
        chunk=chunk,
        chunks=chunks,
        head_size=HEAD_SIZE,
        scale=(3 * HEAD_SIZE) ** -0.5,
        c2p=True,
        p2c=True,
        dropout_rate=rate,
        packed=True,
        strided_roll="v4" not in device.device_kind,
        pack_instruction=True,
    )
    batch, width = TOKENS // plan.length, HEADS * HEAD_SIZE

    def array(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(device))

    inputs = dict.fromkeys(("query", "key", "value"), array(batch, plan.length, width))
    inputs |= dict.fromkeys(("query_code", "key_code"), array(batch, plan.length, 128))
    inputs |= dict.fromkeys(("query_segments", "key_segments"), array(batch, 1, plan.length, dtype=jnp.int32))
    inputs |= dict.fromkeys(("key_table", "query_table"), array(2 * plan.length, width))
    scalars, ranges = array(3, dtype=jnp.int32), (array(batch * chunks, dtype=jnp.int32),) * 2
    if kernel == "backward":
        statistics = array(batch, HEADS, 1, plan.length, dtype=jnp.float32)
        inputs |= {"context": inputs["query"], "d_context": inputs["query"], "lse": statistics}
        program = jax.jit(lambda *arguments: backward(plan, *arguments)).lower(scalars, ranges, inputs)
    elif plan.length == 128:
        program = jax.jit(lambda *arguments: forward_short(plan, *arguments)).lower(scalars, inputs)
    else:
        program = jax.jit(lambda *arguments: forward(plan, *arguments)).lower(scalars, ranges, inputs)
    program.compile()


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """Bundles of one sequence and head; the busiest unit, such as "MXU", and the share of its slots that is taken."""

    bundles: float
    unit: str
    share: float


def kernel_cost(kernel: str, chip: str, length: int, rate: float) -> KernelCost:
    """Raises RuntimeError with the compiler's message where it does not compile."""
    from deberta_jax.kernels.forward_128 import MAX_ROWS
    from deberta_jax.kernels.fused import tiling

    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
        }
        command = [sys.executable, "-m", "tests.benchmarks.kernel_cost", "--compile", kernel, TOPOLOGIES[chip]]
        command += [str(length), str(rate)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        schedules = list(Path(folder).glob(f"*disentangled_{kernel}*[0-9]-final_bundles.txt"))
        if done.returncode or len(schedules) != 1:
            raise RuntimeError(f"{kernel}, {chip}, {length} tokens, dropout {rate}:\n{done.stderr[-2000:]}")
        step = _step_bundles(schedules[0].read_text().splitlines())
        unit, share = _busiest(
            next(Path(folder).glob(f"*disentangled_{kernel}*-final_hlo-*utilization.txt")).read_text()
        )
    chunk, chunks = tiling(length, "bfloat16", chip)
    sequences = MAX_ROWS if kernel == "forward" and chunk * chunks == 128 else 1
    return KernelCost(step * chunks**2 / (HEADS_A_STEP * sequences), unit, share)


def _busiest(utilization: str) -> tuple[str, float]:
    """Of a table: the names of the units, how many slots of each a bundle has, and a line a bundle of those taken."""
    lines = utilization.splitlines()
    names = lines[1].split(", ")
    slots, *taken = ([int(number) for number in line.split()] for line in lines[2:] if not line.startswith("="))
    totals = [sum(column) for column in zip(*taken, strict=True)]
    shares = {name: total / len(taken) / free for name, total, free in zip(names, totals, slots, strict=True)}
    unit = max((name for name in names if ":" not in name), key=shares.__getitem__)  # "VLOAD:FILL" is part of VLOAD
    return unit, shares[unit]


def _step_bundles(schedule: list[str]) -> int:
    """Bundles of a grid step, without the smaller one of two alternatives: blocks that few steps run."""
    lines = [line for line in schedule if re.match(r"\s*0x[0-9a-f]+ ", line)]
    total, branch = len(lines), None
    left_out = 0
    for at, line in enumerate(lines):
        if " PF:" in line[:24] and branch is not None and at - branch < total / 4:
            left_out += at - branch
        if " PF:" in line[:24]:
            branch = None
        if "sbr.rel" in line:
            branch = at + 5  # a branch takes effect five bundles later
    return total - left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", default=["v4", "v5e", "v5p", "v6e"], choices=list(TOPOLOGIES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--compile", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        kernel, topology, length, rate = options.compile
        compile_kernel(kernel, topology, int(length), float(rate))
        return
    print("bundles per sequence and head, a compiler estimate")
    print(f"{'chip':6} {'tokens':>6} {'dropout':>7} {'forward':>9} {'':>10} {'backward':>9}")
    for chip in options.chips:
        for length in options.lengths:
            for rate in options.dropout:
                print(f"{chip:6} {length:6} {rate:7}", end="")
                for kernel in ("forward", "backward"):
                    cost = kernel_cost(kernel, chip, length, rate)
                    print(f" {cost.bundles:9.0f} {cost.unit:>5} {cost.share:4.0%}", end="", flush=True)
                print()


if __name__ == "__main__":
    main()
