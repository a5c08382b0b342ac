"""What the TPU compiler schedules for the attention kernels: compiler estimates, no device is timed.

    python -m tests.benchmarks.kernel_cost [--chips v4 v5e v5p v6e] [--lengths 128 256 512 1024 2048] [--dropout 0 0.1]
                                           [--keep]

Needs libtpu (`pip install "jax[tpu]"`), whose compiler runs on any Linux host. For each case, a process compiles one
kernel ahead of time and the compiler dumps its schedule. The numbers are VLIW bundles (about cycles) of one sequence
and head: those that a run of the kernel executes, each branch as often as it is taken, divided by its sequences and
heads. The case is 12 heads of 64 in bfloat16, with segments, both relative terms and the buckets of v3-base. With
--keep, the forward kernel keeps the probabilities for the backward kernel where a sequence is one tile. Waits for
memory are not counted. Next to the bundles are the busiest unit and the share of its slots that is taken.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
HEADS, HEAD_SIZE = 12, 64
TOKENS = 131_072  # so many that the compiler keeps the kernel's arguments in HBM, where those of a model are


def compile_kernel(kernel: str, topology: str, length: int, rate: float, *, keep: bool) -> None:
    """Compiles one kernel for the topology's first device; the result is what the compiler dumps."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from deberta_jax import DebertaConfig
    from deberta_jax.kernels.backward import backward
    from deberta_jax.kernels.forward import forward
    from deberta_jax.kernels.forward_128 import forward_128
    from deberta_jax.kernels.fused import first_far, rows_by_offset
    from deberta_jax.kernels.operands import ChunkSegments, ForwardOutputs, KernelInputs, kept_shapes
    from deberta_jax.kernels.plan import KernelPlan
    from deberta_jax.positions import live_rows

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    plan = KernelPlan.create(
        length=length,
        head_size=HEAD_SIZE,
        dtype=jnp.bfloat16,
        device_kind=device.device_kind,
        dropout_rate=rate,
        keep_probabilities=keep,
    )
    rows = rows_by_offset(live_rows(length, DebertaConfig.named("deberta-v3-base")), plan.length)
    plan = dataclasses.replace(plan, far=first_far(plan, rows))
    batch, width = TOKENS // plan.length, HEADS * HEAD_SIZE

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(device))

    tokens, code = array(batch, plan.length, width), array(batch, plan.length, 128)
    segments, table = array(batch, 1, plan.length, dtype=jnp.int32), array(2 * plan.length, width)
    inputs = KernelInputs(
        key=tokens,
        key_code=code,
        key_segments=segments,
        key_table=table,
        query=tokens,
        query_code=code,
        query_segments=segments,
        query_table=table,
        value=tokens,
    )
    origin, chunks = array(3, dtype=jnp.int32), array(batch * plan.chunks, dtype=jnp.int32)
    arguments: tuple[Any, ...] = (origin, ChunkSegments(chunks, chunks), inputs)
    if kernel == "backward":
        lse = array(batch, HEADS, 1, plan.length, dtype=jnp.float32)
        kept = jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), kept_shapes(plan, tokens))
        function, arguments = backward, (*arguments, ForwardOutputs(tokens, lse, kept), tokens)
    elif plan.length == 128:
        function, arguments = forward_128, (origin, inputs)
    else:
        function = forward
    jax.jit(lambda *arguments: function(plan, *arguments)).lower(*arguments).compile()


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """Bundles of one sequence and head; the busiest unit, such as "MXU", and the share of its slots that is taken."""

    bundles: float
    unit: str
    share: float


def kernel_cost(kernel: str, chip: str, length: int, rate: float, *, keep: bool) -> KernelCost:
    """Prices one kernel. Raises RuntimeError with the compiler's message if it does not compile."""
    from deberta_jax.train.compile_ahead.schedules import parse_schedule

    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
        }
        command = [sys.executable, "-m", "tests.benchmarks.kernel_cost", "--compile", kernel, TOPOLOGIES[chip]]
        command += [str(length), str(rate), *(["--keep"] if keep else [])]
        process = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        schedules = list(Path(folder).glob(f"*disentangled_{kernel}*[0-9]-final_bundles.txt"))
        if process.returncode or len(schedules) != 1:
            raise RuntimeError(f"{kernel}, {chip}, {length} tokens, dropout {rate}:\n{process.stderr[-2000:]}")
        schedule = parse_schedule(schedules[0].read_text())
        if schedule is None:
            raise RuntimeError(f"{kernel}, {chip}, {length} tokens: the schedule takes too many branches to follow")
        unit, share = _busiest(
            next(Path(folder).glob(f"*disentangled_{kernel}*-final_hlo-*utilization.txt")).read_text()
        )
    return KernelCost(schedule.bundles / (HEADS * (TOKENS // length)), unit, share)


def _busiest(utilization: str) -> tuple[str, float]:
    """Returns the busiest unit and the share of its slots that is taken.

    Args:
      utilization: a table: the names of the units, how many slots of each a bundle has, and for each bundle a line
        with the number of slots taken.
    """
    lines = utilization.splitlines()
    names = lines[1].split(", ")
    slots, *taken = ([int(number) for number in line.split()] for line in lines[2:] if not line.startswith("="))
    totals = [sum(column) for column in zip(*taken, strict=True)]
    shares = {name: total / len(taken) / free for name, total, free in zip(names, totals, slots, strict=True)}
    unit = max((name for name in names if ":" not in name), key=shares.__getitem__)  # "VLOAD:FILL" is part of VLOAD
    return unit, shares[unit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", default=["v4", "v5e", "v5p", "v6e"], choices=list(TOPOLOGIES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--keep", action="store_true", help="keep the probabilities for the backward kernel")
    parser.add_argument("--compile", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        kernel, topology, length, rate = options.compile
        compile_kernel(kernel, topology, int(length), float(rate), keep=options.keep)
        return
    print("bundles per sequence and head, a compiler estimate")
    print(f"{'chip':6} {'tokens':>6} {'dropout':>7} {'forward':>9} {'':>10} {'backward':>9}")
    for chip in options.chips:
        for length in options.lengths:
            for rate in options.dropout:
                print(f"{chip:6} {length:6} {rate:7}", end="")
                for kernel in ("forward", "backward"):
                    cost = kernel_cost(kernel, chip, length, rate, keep=options.keep)
                    print(f" {cost.bundles:9.0f} {cost.unit:>5} {cost.share:4.0%}", end="", flush=True)
                print()


if __name__ == "__main__":
    main()
