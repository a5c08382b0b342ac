"""Builds reports of the compile-ahead command without compiling."""

from deberta_jax.train.compile_ahead.command import CompileAheadConfig
from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.report import DeviceMemory, Report
from deberta_jax.train.compile_ahead.schedules import Schedule
from deberta_jax.train.compile_ahead.timing import Hardware, Timing, Workload
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, GIB, MemoryUse

from .hlo_programs import PROGRAM

SCHEDULES = {"kernel.1": Schedule(bundles=4_000_000, products=500_000)}
EIGHT_CHIPS = Hardware(chip=CHIPS["v5e"], torus_axes=2, devices=8)
WORKLOAD = Workload(step_flops=10**9, relative_flops=10**8, step_tokens=8192, training_tokens=8.192e9)


def make_report(config: CompileAheadConfig, *, needed: float, fits: bool = True) -> Report:
    """Returns a report on eight chips with 2 GiB of parameters and 4 GiB of optimizer state each.

    Args:
      config: the step; its mesh axes zero and tensor are ignored.
      needed: GiB that a device needs.
      fits: whether they are enough.
    """
    cost = read_cost(PROGRAM, schedules=SCHEDULES, peaks=CHIPS["v5e"].peaks) if fits else None
    gibibytes = {"temporary_bytes": needed - 6, "argument_bytes": 6, "program_bytes": 0, "peak_bytes": needed}
    compiled = MemoryUse(**{name: int(size * GIB) for name, size in gibibytes.items()})
    return Report(
        config=config,
        flags={},
        mesh={"data": 8 // config.mesh.fsdp, "zero": 1, "fsdp": config.mesh.fsdp, "tensor": 1},
        chips=8,
        devices=8,
        rows=config.global_batch // 8 // config.accumulation,
        memory=DeviceMemory(
            parameter_bytes=2 * GIB,
            optimizer_bytes=4 * GIB,
            batch_bytes=0,
            needed_bytes=int(needed * GIB),
            available_bytes=int(15.75 * GIB),
            compiled=compiled if fits else None,
        ),
        cost=cost,
        timing=Timing.estimate(cost, EIGHT_CHIPS, WORKLOAD) if cost else None,
        compile_seconds=1.0,
        compile_cpu_seconds=1.0,
    )
