"""Estimates what a training step costs on TPUs, without access to any: memory, collectives and time.

    deberta-jax compile-ahead --model deberta-v3-large --topology v5e:16x16 --global-batch 8192 --sequence-length 512

The TPU compiler compiles the same step that `deberta-jax pretrain` or `finetune` trains with, its state and batch
sharded as in a run. If the step does not fit into memory, the exit status is 1, and changes that may make it fit are
compiled as well.
"""

import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax

from deberta_jax.errors import UserError
from deberta_jax.sharding import make_mesh
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import say

from ..configs import MeshConfig
from ..engine.kept_layers import KeptLayers, fit_kept_layers
from ..reporting.pictures import draw_or_report
from ..settings import BatchSize, NotNegative, Positive, Range
from .compile_process import CompiledProgram, compile_with_schedules
from .hlo_costs import Cost, read_cost
from .report import DeviceMemory, Report, describe
from .report_tables import print_report, print_sweep
from .step_program import StepConfig, StepProgram, build, check_batch
from .sweep_plot import check_plot_path, plot_sweep
from .timing import Hardware, Timing, Workload
from .tpu_compiler import (
    GIB,
    OutOfMemoryError,
    Topology,
    topology,
    torus_shape,
    trace,
)
from .xla_flags import XLA_FLAGS, parse_flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileAheadConfig(StepConfig):
    """Estimate memory, time and cost of a training step on TPUs, without access to any TPU.

    The TPU compiler compiles the step for the given slice. Needs deberta-jax[tpu].
    """

    COMMON: ClassVar[tuple[str, ...]] = (
        "model",
        "topology",
        "slices",
        "task",
        "global-batch",
        "sequence-length",
        "accumulation",
        "mesh.zero",
        "mesh.fsdp",
        "mesh-auto",
        "dtype",
        "remat",
        "tokens",
        "json",
        "sweep",
    )
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "--model deberta-v3-large --topology v5e:16x16 --global-batch 8192 --sequence-length 512",
        "--model deberta-v3-base --topology v5e:2x4 --global-batch 256 --task finetune --remat",
        "--model deberta-v3-large --topology v5e:8x8 --slices 2 --global-batch 4096 --mesh-auto",
    )

    xla_flags: str | None = None
    """flags of the TPU compiler as in LIBTPU_INIT_ARGS, "" for none (default: those that tpu_scripts set)"""
    tokens: Annotated[float, Range(above=0)] = 2.1e12
    """tokens to train on, for days and chip-hours; 2.1e12 are 500,000 steps of 8,192 rows of 512 tokens"""
    alternatives: NotNegative = 3
    """number of alternatives to compile if the step does not fit; 0 disables the search"""
    json: bool = False
    """print JSON instead of tables"""
    mesh_auto: bool = False
    """compile the step for several meshes and name the fastest one that fits; mesh.tensor is kept"""
    sweep: bool = False
    """compile all combinations of sweep_batches and sweep_fsdp instead, for a table and a plot"""
    sweep_batches: tuple[BatchSize, ...] = ()
    """global batches of the sweep (default: a quarter, a half and the whole of global_batch)"""
    sweep_fsdp: tuple[Positive, ...] = ()
    """sizes of the fsdp axis in the sweep (default: that of mesh)"""
    plot: Path = Path("compile_ahead.png")
    """file for the plot of the sweep"""


def main(config: CompileAheadConfig) -> None:
    """Compiles the step and prints the report.

    Raises:
      UserError: the step does not fit (with the shortfall, and what fits), or the settings are not possible.
    """
    if config.mesh_auto and config.sweep:
        raise UserError("mesh_auto and sweep are both set; set one of them")
    jax.config.update("jax_platforms", "cpu")  # do not search for a TPU in this machine
    hardware = topology(config.topology, slices=config.slices)
    if config.sweep:
        _sweep(config, hardware)
        return
    if config.mesh_auto:
        _recommend_mesh(config, hardware)
        return
    report = compile_step(config, hardware)
    alternatives = [] if report.fits else compile_alternatives(config, report, hardware)
    if config.json:
        others = [other.to_json() for other in alternatives]
        print(to_json({**report.to_json(), "alternatives": others}, indent=2, ascii=True))
    else:
        print_report(report, hardware.chip, alternatives)
    if not report.fits:
        raise UserError(shortfall_message(report, alternatives))


def compile_step(config: CompileAheadConfig, hardware: Topology) -> Report:
    """Compiles one step and reports on it.

    Raises:
      UserError: the model does not exist, the batch cannot be split, or a flag is wrong.
    """
    start, cpu_start = time.monotonic(), sum(os.times()[:4])
    flags = _compiler_flags(config)
    program = build(config, hardware.devices)
    config, compiled = _compile(config, program.kept, flags=flags, available=hardware.chip.hbm)
    cost = compiled_memory = None
    if isinstance(compiled, OutOfMemoryError):
        needed, available = compiled.needed, compiled.available
    else:
        cost = read_cost(compiled.text, schedules=compiled.schedules, peaks=hardware.chip.peaks)
        compiled_memory = compiled.memory
        needed, available = compiled_memory.needed_bytes, hardware.chip.hbm
    # Every axis but tensor splits the batch.
    batch_shards = program.mesh.size // program.mesh.shape["tensor"]
    return Report(
        config=config,
        flags=flags,
        mesh=dict(program.mesh.shape),
        chips=len(hardware.devices) // hardware.chip.devices,
        devices=len(hardware.devices),
        rows=config.global_batch // (config.accumulation * batch_shards),
        memory=DeviceMemory(
            parameter_bytes=_bytes_per_device(program.state.params),
            optimizer_bytes=_bytes_per_device(program.state.opt_state),
            batch_bytes=_bytes_per_device(program.batch),
            needed_bytes=needed,
            available_bytes=available,
            compiled=compiled_memory,
        ),
        cost=cost,
        timing=_estimate_timing(config, hardware, program, cost) if cost else None,
        compile_seconds=time.monotonic() - start,
        compile_cpu_seconds=sum(os.times()[:4]) - cpu_start,
    )


def _compile(
    config: CompileAheadConfig, kept: KeptLayers, *, flags: dict[str, str], available: int
) -> tuple[CompileAheadConfig, CompiledProgram | OutOfMemoryError]:
    """Compiles a step with the given number of kept layers, or with as many as fit into the available bytes.

    Returns:
      The settings with the number of kept layers, and the compiled program or why there is none.
    """
    refused: dict[int, OutOfMemoryError] = {}

    def compile_with(layers: int) -> CompiledProgram | None:
        changed = dataclasses.replace(config, kept_layers=layers)
        _show_progress(f"compiling {describe(changed)}")
        try:
            return compile_with_schedules(functools.partial(_trace_step, changed), flags=flags)
        except OutOfMemoryError as error:
            refused[layers] = error
            return None

    if config.kept_layers is None:
        fitted = fit_kept_layers(compile_with, lambda program: program.memory.needed_bytes, kept, available)
        layers, compiled = fitted.kept_layers, fitted.program
        _show_progress(f"{layers} of {kept.layers} layers keep their attention probabilities: {fitted.reason}")
    else:
        layers = config.kept_layers
        compiled = compile_with(layers)
    return dataclasses.replace(config, kept_layers=layers), compiled or refused[layers]


def _estimate_timing(config: CompileAheadConfig, hardware: Topology, program: StepProgram, cost: Cost) -> Timing:
    return Timing.estimate(
        cost,
        Hardware(
            chip=hardware.chip,
            torus_axes=len(torus_shape(config.topology)),
            devices=len(hardware.devices),
            slices=config.slices,
        ),
        Workload(
            step_flops=program.flops * config.global_batch,
            relative_flops=program.relative_flops * config.global_batch,
            step_tokens=config.global_batch * config.sequence_length,
            training_tokens=config.tokens,
        ),
    )


def _trace_step(config: CompileAheadConfig) -> Any:
    """Traces the step, in the process that compiles it."""
    program = build(config, topology(config.topology, slices=config.slices).devices)
    return trace(program.step, program.state, program.batch)


# ---------------------------------------------------------------- alternatives to a step that does not fit


def compile_alternatives(config: CompileAheadConfig, report: Report, hardware: Topology) -> list[Report]:
    """Compiles up to `config.alternatives` changes of a step that does not fit, the most promising first."""
    changes = itertools.islice(likely_alternatives(config, report), config.alternatives)
    return [compile_step(change, hardware) for change in changes]


def likely_alternatives(config: CompileAheadConfig, report: Report) -> Iterator[CompileAheadConfig]:
    """Yields changes of a step that may make it fit: single changes first, then all of them together.

    How much to change follows from the failed step. All memory beyond parameters and optimizer state is assumed to be
    proportional to the rows that a device processes at a time.
    """
    memory = report.memory
    state = memory.parameter_bytes + memory.optimizer_bytes
    temporaries = memory.needed_bytes - state
    factor = _accumulation_factor(temporaries, memory.available_bytes - state, report.rows)
    if factor:
        yield dataclasses.replace(config, accumulation=config.accumulation * factor)
    if not config.remat:
        yield dataclasses.replace(config, remat=True)
    wider = _wider_fsdp(config, report)
    fits = (size for size in wider if temporaries + state * config.mesh.fsdp // size <= memory.available_bytes)
    if fsdp := next(fits, None):
        yield dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=fsdp))
    everything = dataclasses.replace(config, remat=True, accumulation=config.accumulation * report.rows)
    yield everything
    if wider:
        yield dataclasses.replace(everything, mesh=dataclasses.replace(config.mesh, fsdp=wider[-1]))


def _accumulation_factor(temporaries: int, available: int, rows: int) -> int | None:
    """Returns the smallest divisor of a device's rows that makes temporaries fit when they shrink by it, or None."""
    factors = (factor for factor in range(2, rows + 1) if rows % factor == 0 and temporaries / factor <= available)
    return next(factors, None)


def _wider_fsdp(config: CompileAheadConfig, report: Report) -> list[int]:
    """Returns the sizes of the fsdp axis that split the parameters further, in ascending order."""
    devices = report.devices // config.slices  # only the data axis crosses slices
    other_axes = math.prod(size for axis, size in report.mesh.items() if axis not in ("data", "fsdp"))
    multiples = range(2 * config.mesh.fsdp, devices + 1, config.mesh.fsdp)
    return [size for size in multiples if devices % (size * other_axes) == 0]


def shortfall_message(report: Report, alternatives: Sequence[Report]) -> str:
    """Returns the error message for a step that does not fit: how much is missing, and what to change."""
    needed, available = report.memory.needed_bytes / GIB, report.memory.available_bytes / GIB
    text = (
        f"the step does not fit: a device needs {needed:.2f} GiB and has {available:.2f} GiB, short by "
        f"{needed - available:.2f} GiB (compiler estimate)"
    )
    fitting = [other for other in alternatives if other.fits]
    if fitting:
        return f"{text}; it fits with " + " or ".join(_changed_options(other, report) for other in fitting)
    if alternatives:
        failed = ", ".join(_changed_options(other, report) for other in alternatives)
        return f"{text}; it does not fit with {failed} either; use a smaller batch or more chips"
    return f"{text}; try --accumulation, --remat, --mesh.fsdp or a smaller --global-batch"


def _changed_options(other: Report, report: Report) -> str:
    """Returns the options that turn the step of `report` into that of `other`."""
    options = []
    if other.config.accumulation != report.config.accumulation:
        options.append(f"--accumulation {other.config.accumulation}")
    if other.config.remat != report.config.remat:
        options.append("--remat")
    if other.mesh["fsdp"] != report.mesh["fsdp"]:
        options.append(f"--mesh.fsdp {other.mesh['fsdp']}")
    return " ".join(options)


# ---------------------------------------------------------------- the fastest mesh


def candidate_meshes(config: CompileAheadConfig, devices: int) -> list[MeshConfig]:
    """Returns the meshes that `mesh_auto` compares, each once. All of them split the batch in the same way.

    They are data parallelism, its optimizer state divided over a whole slice (ZeRO-1), the parameters divided over a
    whole slice (FSDP), and FSDP over groups of devices, which moves fewer bytes and needs more memory.

    Args:
      config: of the step; the tensor axis is kept.
      devices: number of devices of a slice.
    """
    shards = max(1, devices // config.mesh.tensor)
    group = max(size for size in range(1, math.isqrt(shards) + 1) if shards % size == 0)
    sizes = [(1, 1), (shards, 1), (1, shards), (1, group)]
    return [MeshConfig(zero=zero, fsdp=fsdp, tensor=config.mesh.tensor) for zero, fsdp in dict.fromkeys(sizes)]


def _recommend_mesh(config: CompileAheadConfig, hardware: Topology) -> None:
    """Compiles the step for each candidate and prints all of them, the fastest first.

    Raises:
      UserError: the step fits with none of them, or the batch cannot be split.
    """
    meshes = candidate_meshes(config, len(hardware.devices) // config.slices)
    steps = [dataclasses.replace(config, mesh=mesh) for mesh in meshes]
    check_batch(steps[0], make_mesh(**dataclasses.asdict(steps[0].mesh), devices=hardware.devices))
    reports = [compile_step(step, hardware) for step in steps]
    reports.sort(key=lambda report: report.timing.step_seconds if report.timing else math.inf)
    best = reports[0]
    options = _mesh_options(best.config.mesh) or "no option: data parallelism"
    if config.json:
        recommended = dataclasses.asdict(best.config.mesh) if best.fits else None
        values = {"recommended": recommended, "steps": [report.to_json() for report in reports]}
        print(to_json(values, indent=2, ascii=True))
    else:
        print_sweep(reports, title="Meshes")
    if best.timing is None:
        least = min(reports, key=lambda report: report.memory.needed_bytes)
        raise UserError(shortfall_message(least, []))
    _show_progress(f"the fastest mesh that fits: {options} ({best.timing.step_seconds * 1e3:,.0f} ms a step)")


def _mesh_options(mesh: MeshConfig) -> str:
    sizes = dataclasses.asdict(mesh)
    return " ".join(f"--mesh.{axis} {size}" for axis, size in sizes.items() if size > 1)


# ---------------------------------------------------------------- sweep


def _sweep(config: CompileAheadConfig, hardware: Topology) -> None:
    quarters = (config.global_batch // 4, config.global_batch // 2, config.global_batch)
    batches = config.sweep_batches or tuple(batch for batch in quarters if batch)
    steps = [
        dataclasses.replace(config, global_batch=batch, mesh=dataclasses.replace(config.mesh, fsdp=fsdp))
        for fsdp in config.sweep_fsdp or (config.mesh.fsdp,)
        for batch in batches
    ]
    check_plot_path(config.plot)
    for step in steps:  # all before the first, which may take hours to compile
        check_batch(step, make_mesh(**dataclasses.asdict(step.mesh), devices=hardware.devices))
    reports = [compile_step(step, hardware) for step in steps]
    if config.json:
        print(to_json([report.to_json() for report in reports], indent=2, ascii=True))
    else:
        print_sweep(reports)
    draw_or_report(config.plot, lambda path: plot_sweep(reports, path), log=_show_progress)


def _compiler_flags(config: CompileAheadConfig) -> dict[str, str]:
    """Returns the flags of the compiler: those of a run by tpu_scripts, unless the user gives others."""
    if config.xla_flags is None:
        return XLA_FLAGS[config.topology.partition(":")[0]]
    return parse_flags(config.xla_flags)


def _bytes_per_device(tree: Any) -> int:
    """Returns the bytes of one device's shards of a tree of ShapeDtypeStruct with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _show_progress(text: str) -> None:
    """Prints a line on stderr, as stdout may be JSON."""
    say(text, error=True)
