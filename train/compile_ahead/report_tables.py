"""Prints reports of compiled steps as tables."""

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from deberta_jax.console import PlainConsole, plain_text

from .hlo_collectives import reduction_bytes
from .hlo_costs import Bound, Cost
from .report import Report, describe
from .timing import BoundTiming, Timing
from .tpu_compiler import GIB, Chip


def print_report(report: Report, chip: Chip, alternatives: Sequence[Report]) -> None:
    """Prints all figures of a step, and the alternatives that were compiled because it does not fit."""
    console = PlainConsole()
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    console.print(
        plain_text(describe(report.config), "bold")
        + Text(f": {report.chips} chips, mesh {mesh}, {report.rows} rows per device at a time")
    )
    device = "chip" if chip.devices == 1 else f"device ({chip.devices} in a chip)"
    flags = " ".join(f"--{name}={value}" for name, value in report.flags.items())
    console.print(f"Compiler flags: {flags or 'none'}")
    console.print(f"All figures are compiler estimates or computed from them; nothing was run. Memory is per {device}.")
    console.print(_memory_table(report))
    if report.cost and report.timing:
        for table in _collective_tables(report.cost, chip):
            console.print(table)
        reductions = reduction_bytes(report.cost.collectives)
        if reductions.total:
            share = reductions.asynchronous / reductions.total
            console.print(f"Reductions within a slice: {share:.0%} of their bytes are asynchronous")
        console.print(_time_table(report.cost, report.timing, chip))
        if report.cost.bound and report.timing.bound:
            console.print(_bound_table(report.cost.bound, report.timing.bound, chip))
    console.print(f"Compiled in {report.compile_seconds:.0f} s ({report.compile_cpu_seconds:.0f} s of CPU time)")
    if alternatives:
        print_sweep(alternatives, title="Alternatives")


def print_sweep(reports: Sequence[Report], *, title: str = "Sweep") -> None:
    """Prints one line per step."""
    columns = ["batch", "accumulation", "remat", "mesh", "rows/device", "GiB", "fits"]
    columns += ["step", "MFU", "MFU by bound", "tokens/s", "days", "chip-hours"]
    table = _table(f"{title} (compiler estimate)", *columns)
    for report in reports:
        timing = [""] * 6
        if report.timing:
            timing = [
                f"{report.timing.step_seconds * 1e3:,.0f} ms",
                f"{report.timing.mfu:.1%}",
                f"{report.timing.bound.mfu:.1%}" if report.timing.bound else "",
                f"{report.timing.tokens_per_second:,.0f}",
                f"{report.timing.days:,.2f}",
                f"{report.timing.chip_hours:,.0f}",
            ]
        table.add_row(
            str(report.config.global_batch),
            str(report.config.accumulation),
            "yes" if report.config.remat else "no",
            " x ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1),
            str(report.rows),
            f"{report.memory.needed_bytes / GIB:.2f} of {report.memory.available_bytes / GIB:.2f}",
            Text("yes", "green") if report.fits else Text("no", "red"),
            *timing,
        )
    PlainConsole().print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _memory_table(report: Report) -> Table:
    memory = report.memory
    rows = [
        ("parameters", memory.parameter_bytes),
        ("optimizer state", memory.optimizer_bytes),
        ("batch", memory.batch_bytes),
    ]
    if memory.compiled is None:
        arguments = memory.parameter_bytes + memory.optimizer_bytes + memory.batch_bytes
        rows += [("everything else (compiler estimate)", memory.needed_bytes - arguments)]
    else:
        rows += [
            ("activations, gradients and scratch space (compiler estimate)", memory.compiled.temporary_bytes),
            ("program code (compiler estimate)", memory.compiled.program_bytes),
        ]
    table = _table("Memory", "", "GiB")
    for name, size in rows:
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("needed at the peak (compiler estimate)", f"{memory.needed_bytes / GIB:.2f}")
    table.add_row("available", f"{memory.available_bytes / GIB:.2f}")
    difference = abs(memory.available_bytes - memory.needed_bytes) / GIB
    table.add_row(Text("free", "green") if report.fits else Text("short by", "red"), f"{difference:.2f}")
    return table


def _collective_tables(cost: Cost, chip: Chip) -> Iterator[Table]:
    for network, place in (("ici", "within a slice"), ("dcn", "between slices")):
        collectives = [collective for collective in cost.collectives if collective.network == network]
        if not collectives and network == "dcn":
            continue
        title = f"Collectives {place}, per device and step (compiler estimate)"
        table = _table(title, "", "group size", "count", "MB", "MB sent", "overlapped computation")
        for collective in collectives:
            overlapped = collective.beside_cycles / chip.clock * 1e3
            table.add_row(
                collective.kind,
                str(collective.group),
                str(collective.count),
                f"{collective.bytes / 1e6:,.1f}",
                f"{collective.wire_bytes / 1e6:,.1f}",
                f"{overlapped:,.2f} ms" if collective.asynchronous else "",
            )
        yield table


def _time_table(cost: Cost, timing: Timing, chip: Chip) -> Table:
    table = _table("Time (compiler estimate)", "", "")
    unpriced = ", ".join(f"{count} {kind}" for kind, count in cost.unpriced.items())
    rows = (
        ("cycles outside kernels", f"{cost.cycles / 1e6:,.1f} M"),
        *((f"cycles of the kernel {name}", f"{count / 1e6:,.1f} M") for name, count in cost.kernel_cycles.items()),
        (f"computation at {chip.clock / 1e9:.2f} GHz", f"{timing.compute_seconds * 1e3:,.1f} ms"),
        (f"without a cycle estimate, from bytes: {unpriced or 'none'}", f"{timing.unpriced_seconds * 1e3:,.1f} ms"),
        ("waiting for collectives, from bytes", f"{timing.collective_seconds * 1e3:,.1f} ms"),
        ("collectives hidden by computation (not added)", f"{timing.hidden_seconds * 1e3:,.1f} ms"),
        ("step", f"{timing.step_seconds * 1e3:,.1f} ms"),
        ("MFU (share of the bfloat16 peak)", f"{timing.mfu:.1%}"),
        ("MFU without the relative terms of attention", f"{timing.mfu_without_relative:.1%}"),
        ("tokens/s", f"{timing.tokens_per_second:,.0f}"),
        (f"days for {timing.tokens:.3g} tokens", f"{timing.days:,.2f}"),
        ("chip-hours", f"{timing.chip_hours:,.0f}"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _bound_table(bound: Bound, timing: BoundTiming, chip: Chip) -> Table:
    table = _table("Lower bound (schedules of the compiler and published peaks)", "", "")
    rows = (
        ("bundles of the schedules", f"{bound.bundle_cycles / 1e6:,.1f} M"),
        ("matrix units at their peak", f"{bound.matrix_cycles / 1e6:,.1f} M"),
        (f"HBM at its peak: {bound.hbm_bytes / 1e9:,.1f} GB", f"{bound.hbm_cycles / 1e6:,.1f} M"),
        ("the largest of the three, summed over the instructions", f"{bound.cycles / 1e6:,.1f} M"),
        ("of it without a schedule, from estimates and bytes", f"{bound.unscheduled_cycles / 1e6:,.1f} M"),
        (f"computation at {chip.clock / 1e9:.2f} GHz", f"{bound.cycles / chip.clock * 1e3:,.1f} ms"),
        ("step, with the waits for collectives", f"{timing.step_seconds * 1e3:,.1f} ms"),
        ("MFU (share of the bfloat16 peak)", f"{timing.mfu:.1%}"),
        ("MFU without the relative terms of attention", f"{timing.mfu_without_relative:.1%}"),
    )
    for row in rows:
        table.add_row(*row)
    return table
