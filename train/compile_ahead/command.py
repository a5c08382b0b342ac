"""What a training step costs on TPUs that are not there: memory, collectives, time, from the TPU compiler itself.

    deberta-jax compile-ahead --model deberta-v3-large --topology v5e:16x16 --global-batch 8192 --sequence-length 512

The very step of `deberta-jax pretrain` or `finetune` is compiled ahead of time, its state and batch sharded as a run
shards them. Exit status 1 where it does not fit; what would make it fit is found by compiling that too.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from deberta_jax.errors import UserError

from .kernel_costs import find_kernels, kernel_cycles
from .report import Report, Timing, describe, plot_sweep, print_report, print_sweep
from .step_program import StepConfig, build, check_batch, lay_mesh
from .tpu_compiler import GIB, Chip, OutOfMemoryError, compile_for_tpu, cost_of, sizes, topology, trace
from .xla_flags import XLA_FLAGS, parse_flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileAheadConfig(StepConfig):
    """Compile a training step for a TPU slice that is not there, and say what it costs. Needs deberta-jax[tpu]."""

    slices: int = 1
    """slices of that topology, joined by the data center's network, which data parallelism alone crosses"""
    xla_flags: str | None = None
    """flags of the TPU compiler, as LIBTPU_INIT_ARGS has them; default: those that tpu_scripts pass for this chip; ""
    for none"""
    tokens: float = 2.1e12
    """tokens to train on, for the bill; default: those of 500,000 steps of 8,192 rows of 512"""
    alternatives: int = 3
    """where the step does not fit: how many others are compiled in search of one that does"""
    json: bool = False
    """print JSON instead of tables"""
    sweep: bool = False
    """compile every one of sweep_batches on every mesh of sweep_fsdp instead; a table and a plot"""
    sweep_batches: tuple[int, ...] = ()
    """global batches; default: a quarter, a half and the whole of global_batch"""
    sweep_fsdp: tuple[int, ...] = ()
    """sizes of the fsdp axis; default: that of mesh"""
    plot: Path = Path("compile_ahead.png")
    """where the plot of a sweep goes"""


def main(config: CompileAheadConfig) -> None:
    """Prints the report.

    Raises:
      ValueError: it does not fit (the shortfall, and what does), or settings that do not go together.
    """
    jax.config.update("jax_platforms", "cpu")  # no TPU is looked for
    chip, devices = topology(config.topology, slices=config.slices)
    if config.sweep:
        _sweep(config, chip, devices)
        return
    report = measure(config, chip, devices)
    others = [] if report.fits or not config.alternatives else search(config, report, chip, devices)
    if config.json:
        print(json.dumps({**report.to_json(), "alternatives": [one.to_json() for one in others]}, indent=2))
    else:
        print_report(report, chip, others)
    if not report.fits:
        raise UserError(shortfall(report, others))


def measure(config: CompileAheadConfig, chip: Chip, devices: list[Any]) -> Report:
    """Compiles one step."""
    began, began_cpu = time.monotonic(), sum(os.times()[:4])
    program = build(config, devices)
    _progress(f"compiling {describe(_settings(config))}")
    traced = trace(program.step, program.state, program.batch)
    try:
        compiled = compile_for_tpu(traced, flags=_flags(config))
        cycles = kernel_cycles(functools.partial(_jaxpr, config)) if find_kernels(traced.jaxpr) else {}
        cost = cost_of(compiled, kernels=cycles)
        needed, available = cost.peak_bytes + cost.program_bytes, chip.hbm
    except OutOfMemoryError as error:
        cost, needed, available = None, error.needed, error.available
    seconds, cpu_seconds = time.monotonic() - began, sum(os.times()[:4]) - began_cpu
    split = program.mesh.size // program.mesh.shape["tensor"]  # every other axis splits the batch
    rows = config.global_batch // (config.accumulation * split)
    timing = None
    if cost is not None:
        timing = Timing.of(
            cost,
            chip,
            axes=len(sizes(config.topology)),
            devices=len(devices),
            slices=config.slices,
            flops=program.flops * config.global_batch,
            tokens_per_step=config.global_batch * config.sequence_length,
            tokens=config.tokens,
        )
    return Report(
        settings=_settings(config),
        mesh=dict(program.mesh.shape),
        chips=len(devices) // chip.devices,
        devices=len(devices),
        rows=rows,
        parameter_bytes=_local_bytes(program.state.params),
        optimizer_bytes=_local_bytes(program.state.opt_state),
        batch_bytes=_local_bytes(program.batch),
        needed_bytes=needed,
        available_bytes=available,
        cost=cost,
        timing=timing,
        compile_seconds=seconds,
        compile_cpu_seconds=cpu_seconds,
    )


def _jaxpr(config: CompileAheadConfig) -> tuple[Any, Any]:
    """Of the step, and a device of its topology."""
    _, devices = topology(config.topology, slices=config.slices)
    program = build(config, devices)
    return trace(program.step, program.state, program.batch).jaxpr, devices[0]


# ---------------------------------------------------------------- what would fit


def search(config: CompileAheadConfig, report: Report, chip: Chip, devices: list[Any]) -> list[Report]:
    """Compiles what may fit in place of a step that does not: as many as `alternatives` says."""
    changes = itertools.islice(_changes(config, report), config.alternatives)
    return [measure(change, chip, devices) for change in changes]


def _changes(config: CompileAheadConfig, report: Report) -> Iterator[CompileAheadConfig]:
    """One change at a time, as large as the failed step says, then all together.

    What is not parameters and optimizer is taken as proportional to the rows that a device works off at a time.
    """
    state = report.parameter_bytes + report.optimizer_bytes
    rest = report.needed_bytes - state
    chunks = _chunks(rest, report.available_bytes - state, report.rows)
    if chunks:
        yield dataclasses.replace(config, accumulation=config.accumulation * chunks)
    if not config.remat:
        yield dataclasses.replace(config, remat=True)
    others = math.prod(size for axis, size in report.mesh.items() if axis not in ("data", "fsdp"))
    devices = report.devices // config.slices  # data parallelism alone crosses slices
    wider = [size for size in range(2, devices + 1) if devices % (size * others) == 0]
    wider = [size for size in wider if size % config.mesh.fsdp == 0 and size > config.mesh.fsdp]
    fsdp = next((size for size in wider if rest + state * config.mesh.fsdp // size <= report.available_bytes), None)
    if fsdp:
        yield dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=fsdp))
    everything = dataclasses.replace(config, remat=True, accumulation=config.accumulation * report.rows)
    yield everything
    if wider:
        yield dataclasses.replace(everything, mesh=dataclasses.replace(config.mesh, fsdp=wider[-1]))


def _chunks(temporaries: int, room: int, rows: int) -> int | None:
    """Into how many chunks the rows of a device must go for the temporaries to fit: a divisor of the rows, or None."""
    fitting = (chunks for chunks in range(2, rows + 1) if rows % chunks == 0 and temporaries / chunks <= room)
    return next(fitting, None)


def shortfall(report: Report, others: list[Report]) -> str:
    """What is missing, and which of the others does without it."""
    short = (report.needed_bytes - report.available_bytes) / GIB
    text = (
        f"does not fit: a device needs {report.needed_bytes / GIB:.2f} GiB and has {report.available_bytes / GIB:.2f}, "
        f"short by {short:.2f} GiB (compiler estimate)"
    )
    fitting = [one for one in others if one.fits]
    if fitting:
        return f"{text}; what fits: " + " or ".join(_options(one, report) for one in fitting)
    if others:
        failed = ", ".join(_options(one, report) for one in others)
        return f"{text}; these do not fit either: {failed}; give a smaller batch or more chips"
    return f"{text}; try --accumulation, --remat, --mesh.fsdp or a smaller --global-batch"


def _options(one: Report, report: Report) -> str:
    """The options by which a report differs from another."""
    given = []
    if one.settings["accumulation"] != report.settings["accumulation"]:
        given.append(f"--accumulation {one.settings['accumulation']}")
    if one.settings["remat"] != report.settings["remat"]:
        given.append("--remat")
    if one.mesh["fsdp"] != report.mesh["fsdp"]:
        given.append(f"--mesh.fsdp {one.mesh['fsdp']}")
    return " ".join(given)


def _sweep(config: CompileAheadConfig, chip: Chip, devices: list[Any]) -> None:
    batches = config.sweep_batches or tuple(config.global_batch // part for part in (4, 2, 1))
    meshes = config.sweep_fsdp or (config.mesh.fsdp,)
    runs = [
        dataclasses.replace(config, global_batch=batch, mesh=dataclasses.replace(config.mesh, fsdp=fsdp))
        for fsdp in meshes
        for batch in batches
    ]
    for run in runs:  # a mistake shows before hours of compiling
        check_batch(run, lay_mesh(run, devices))
    reports = [measure(run, chip, devices) for run in runs]
    if config.json:
        print(json.dumps([report.to_json() for report in reports], indent=2))
    else:
        print_sweep(reports)
    plot_sweep(reports, config.plot)
    _progress(f"saved {config.plot}")


def _settings(config: CompileAheadConfig) -> dict[str, Any]:
    """What was compiled."""
    every = dataclasses.asdict(config)
    settings = {field.name: every[field.name] for field in dataclasses.fields(StepConfig)}
    return {**settings, "slices": config.slices, "xla_flags": _flags(config)}


def _flags(config: CompileAheadConfig) -> dict[str, str]:
    """Of the compiler: what a run gets, unless others are given."""
    if config.xla_flags is None:
        return XLA_FLAGS[config.topology.partition(":")[0]]
    return parse_flags(config.xla_flags)


def _local_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
