"""Reports of the compile-ahead command, built by hand."""

import dataclasses

from deberta_jax.train.compile_ahead import step_program
from deberta_jax.train.compile_ahead.command import CompileAheadConfig
from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.report import Report, Timing
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, GIB

from .hlo_programs import NO_MEMORY, PROGRAM


def report(config: CompileAheadConfig, *, needed: float, fits: bool) -> Report:
    cost = read_cost(PROGRAM, kernels={}, **NO_MEMORY)
    timing = Timing.of(cost, CHIPS["v5e"], axes=2, devices=8, flops=10**9, tokens_per_step=8192, tokens=8.192e9)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(step_program.StepConfig)}
    settings |= {"mesh": dataclasses.asdict(config.mesh), "slices": config.slices, "xla_flags": {}}
    return Report(
        settings=settings,
        mesh={"data": 8 // config.mesh.fsdp, "zero": 1, "fsdp": config.mesh.fsdp, "tensor": 1},
        chips=8,
        devices=8,
        rows=config.global_batch // 8 // config.accumulation,
        parameter_bytes=2 * GIB,
        optimizer_bytes=4 * GIB,
        batch_bytes=0,
        needed_bytes=int(needed * GIB),
        available_bytes=int(15.75 * GIB),
        cost=cost if fits else None,
        timing=timing if fits else None,
        compile_seconds=1.0,
        compile_cpu_seconds=1.0,
    )
