"""What `compile-ahead` prints: figures of a compiled step as tables, as JSON, as a plot."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from deberta_jax.errors import UserError

from .hlo_costs import Cost
from .tpu_compiler import GIB, Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of a step, from the compiler's cycles and, where it gives none, from bytes; nothing was run.

    Attributes:
      compute_seconds: cycles of the program and of its kernels, at the clock of the chip.
      unpriced_seconds: instructions without cycles, their results read and written once at HBM's speed.
      collective_seconds: what the chips wait for. Collectives are taken as rings: over all axes of the torus where a
        group is the whole slice, over one otherwise; between slices at the speed of the data center's network. The
        computation beside the asynchronous ones is taken off: hidden_seconds.
      network_seconds: of both, the part between slices.
      step_seconds: the first three.
      mfu: share of the chips' bfloat16 peak that the mathematics of the model comes to.
    """

    compute_seconds: float
    unpriced_seconds: float
    collective_seconds: float
    hidden_seconds: float
    network_seconds: float
    step_seconds: float
    mfu: float
    tokens_per_second: float
    tokens: float
    days: float
    chip_hours: float

    @classmethod
    def of(
        cls,
        cost: Cost,
        chip: Chip,
        *,
        axes: int,
        devices: int,
        flops: int,
        tokens_per_step: int,
        tokens: float,
        slices: int = 1,
    ) -> Self:
        """axes: of the torus; devices: of all slices; flops: of a step on them; tokens: of the whole training."""
        waits = hidden = between = 0.0
        for one in cost.collectives:
            if one.network == "dcn":
                between += (taken := one.wire_bytes / _network(chip))
            else:
                taken = one.wire_bytes / (chip.link * (axes if one.group == devices // slices else 1))
            beside = min(taken, one.beside_cycles / chip.clock)
            hidden += beside
            waits += taken - beside
        compute = (cost.cycles + sum(cost.kernel_cycles.values())) / chip.clock
        unpriced = cost.unpriced_bytes / chip.bandwidth
        step = compute + unpriced + waits
        seconds = tokens / tokens_per_step * step
        return cls(
            compute_seconds=compute,
            unpriced_seconds=unpriced,
            collective_seconds=waits,
            hidden_seconds=hidden,
            network_seconds=between,
            step_seconds=step,
            mfu=flops / (step * devices * chip.peak),
            tokens_per_second=tokens_per_step / step,
            tokens=tokens,
            days=seconds / 86400,
            chip_hours=seconds / 3600 * devices / chip.devices,
        )


def _network(chip: Chip) -> float:
    if chip.network is None:
        raise UserError("the speed between slices of this chip is not published")
    return chip.network


def reductions(cost: Cost) -> tuple[int, int]:
    """Bytes of all-reduces and reduce-scatters within a slice, a device and step: asynchronous, and in all.

    They are gradients, but for scalars and, with a tensor axis, activations.
    """
    found = [one for one in cost.collectives if one.network == "ici" and one.kind in ("all-reduce", "reduce-scatter")]
    return sum(one.bytes for one in found if one.asynchronous), sum(one.bytes for one in found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """One compiled step. Bytes are of one device: a chip, or one of a chip's two cores on tpu7x.

    Attributes:
      settings: the options that the program depends on.
      rows: of a device at a time.
      needed_bytes: the peak, or what the compiler said it would take; available_bytes: what a program may use.
      cost, timing: None where it does not fit.
    """

    settings: dict[str, Any]
    mesh: dict[str, int]
    chips: int
    devices: int
    rows: int
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    needed_bytes: int
    available_bytes: int
    cost: Cost | None
    timing: Timing | None
    compile_seconds: float
    compile_cpu_seconds: float

    @property
    def fits(self) -> bool:
        return self.cost is not None

    def to_json(self) -> dict[str, Any]:
        return {"source": "compiler estimate; nothing was run", "fits": self.fits, **dataclasses.asdict(self)}


def print_report(report: Report, chip: Chip, others: Sequence[Report]) -> None:
    console = Console()
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    console.print(
        f"[bold]{describe(report.settings)}[/]: {report.chips} chips, mesh {mesh}, {report.rows} rows a device a time"
    )
    each = "chip" if chip.devices == 1 else f"device ({chip.devices} a chip)"
    flags = " ".join(f"--{name}={value}" for name, value in report.settings["xla_flags"].items())
    console.print(f"compiler flags: {flags or 'none'}")
    console.print(f"Every figure is a compiler estimate or arithmetic on one; nothing was run. Memory is per {each}.")
    console.print(_memory_table(report))
    if report.cost and report.timing:
        for table in _collective_tables(report.cost, chip):
            console.print(table)
        asynchronous, every = reductions(report.cost)
        if every:
            console.print(f"asynchronous: {asynchronous / every:.0%} of the bytes of reductions within a slice")
        console.print(_time_table(report.cost, report.timing, chip))
    console.print(f"compiled in {report.compile_seconds:.0f} s ({report.compile_cpu_seconds:.0f} s of CPU time)")
    if others:
        print_sweep(others, title="Instead")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _memory_table(report: Report) -> Table:
    table = _table("Memory", "", "GiB")
    state = report.parameter_bytes + report.optimizer_bytes + report.batch_bytes
    rows = [
        ("parameters", report.parameter_bytes),
        ("optimizer", report.optimizer_bytes),
        ("batch", report.batch_bytes),
    ]
    if report.cost is None:
        rows += [("all else (compiler estimate)", report.needed_bytes - state)]
    else:
        rows += [
            ("activations, gradients, scratch (compiler estimate)", report.cost.temporary_bytes),
            ("program (compiler estimate)", report.cost.program_bytes),
        ]
    for name, size in rows:
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("needed at the peak (compiler estimate)", f"{report.needed_bytes / GIB:.2f}")
    table.add_row("there is", f"{report.available_bytes / GIB:.2f}")
    spare = (report.available_bytes - report.needed_bytes) / GIB
    table.add_row("[green]left[/]" if report.fits else "[red]short by[/]", f"{abs(spare):.2f}")
    return table


def _collective_tables(cost: Cost, chip: Chip) -> Iterator[Table]:
    for network, name in (("ici", "within a slice"), ("dcn", "between slices")):
        found = [one for one in cost.collectives if one.network == network]
        if found or network == "ici":
            title = f"Collectives {name}, a device and step (compiler estimate)"
            table = _table(title, "", "group", "times", "MB", "MB sent", "while computing")
            for one in found:
                beside = f"{one.beside_cycles / chip.clock * 1e3:,.2f} ms" if one.asynchronous else ""
                sizes = (f"{one.bytes / 1e6:,.1f}", f"{one.wire_bytes / 1e6:,.1f}")
                table.add_row(one.kind, str(one.group), str(one.count), *sizes, beside)
            yield table


def _time_table(cost: Cost, timing: Timing, chip: Chip) -> Table:
    table = _table("Time (compiler estimate)", "", "")
    missing = ", ".join(f"{count} {kind}" for kind, count in cost.unpriced.items())
    rows = (
        ("cycles", f"{cost.cycles / 1e6:,.1f} M"),
        *((f"cycles of {name}", f"{count / 1e6:,.1f} M") for name, count in cost.kernel_cycles.items()),
        (f"computing, at {chip.clock / 1e9:.2f} GHz", f"{timing.compute_seconds * 1e3:,.1f} ms"),
        (f"without an estimate, by bytes: {missing or 'nothing'}", f"{timing.unpriced_seconds * 1e3:,.1f} ms"),
        ("waiting for collectives, by bytes", f"{timing.collective_seconds * 1e3:,.1f} ms"),
        ("collectives while computing, not added", f"{timing.hidden_seconds * 1e3:,.1f} ms"),
        ("a step", f"{timing.step_seconds * 1e3:,.1f} ms"),
        ("MFU (model FLOP/s of the bfloat16 peak)", f"{timing.mfu:.1%}"),
        ("tokens a second", f"{timing.tokens_per_second:,.0f}"),
        (f"days for {timing.tokens:.3g} tokens", f"{timing.days:,.2f}"),
        ("chip-hours", f"{timing.chip_hours:,.0f}"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def print_sweep(reports: Sequence[Report], *, title: str = "Sweep") -> None:
    columns = "batch accumulation remat mesh rows GiB fits step MFU tokens/s days chip-hours".split()
    table = _table(f"{title} (compiler estimate)", *columns)
    for one in reports:
        timing = ["", "", "", "", ""]
        if one.timing:
            timing = [
                f"{one.timing.step_seconds * 1e3:,.0f} ms",
                f"{one.timing.mfu:.1%}",
                f"{one.timing.tokens_per_second:,.0f}",
                f"{one.timing.days:,.2f}",
                f"{one.timing.chip_hours:,.0f}",
            ]
        table.add_row(
            str(one.settings["global_batch"]),
            str(one.settings["accumulation"]),
            "yes" if one.settings["remat"] else "no",
            " x ".join(f"{axis} {size}" for axis, size in one.mesh.items() if size > 1),
            str(one.rows),
            f"{one.needed_bytes / GIB:.2f} of {one.available_bytes / GIB:.2f}",
            "[green]yes[/]" if one.fits else "[red]no[/]",
            *timing,
        )
    Console().print(table)


def describe(settings: dict[str, Any]) -> str:
    """The step in a line: what differs from the defaults of a run is named."""
    slices = f"{settings['slices']} slices of " if settings["slices"] > 1 else ""
    text = (
        f"{settings['model']} {settings['task']} on {slices}{settings['topology']}, {settings['global_batch']} rows of "
    )
    text += f"{settings['sequence_length']}, {settings['dtype']}"
    text += f", accumulation {settings['accumulation']}" if settings["accumulation"] > 1 else ""
    text += ", remat" if settings["remat"] else ""
    mesh = settings["mesh"]
    return text + "".join(f", {axis} {size}" for axis, size in mesh.items() if size > 1)


def plot_sweep(reports: Sequence[Report], path: Path) -> None:
    """Memory and tokens a second against the batch, a line for each mesh; what does not fit is a cross."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    memory, speed = figure.subplots(1, 2)
    for number, fsdp in enumerate(dict.fromkeys(one.mesh["fsdp"] for one in reports)):
        line = sorted(
            (one for one in reports if one.mesh["fsdp"] == fsdp), key=lambda one: one.settings["global_batch"]
        )
        batches = [one.settings["global_batch"] for one in line]
        memory.plot(batches, [one.needed_bytes / GIB for one in line], color=f"C{number}", label=f"fsdp {fsdp}")
        for one in line:
            marker = "o" if one.fits else "x"
            memory.plot(one.settings["global_batch"], one.needed_bytes / GIB, marker, color=f"C{number}")
        timed = [one for one in line if one.timing]
        speed.plot(
            [one.settings["global_batch"] for one in timed],
            [one.timing.tokens_per_second / 1e6 for one in timed if one.timing],
            "o-",
            color=f"C{number}",
            label=f"fsdp {fsdp}",
        )
    memory.axhline(reports[0].available_bytes / GIB, color="grey", linestyle="--", label="there is")
    memory.set(title="Memory of a device (x: does not fit)", ylabel="GiB", ylim=(0, None))
    speed.set(title="Speed of the slice", ylabel="million tokens a second", ylim=(0, None))
    for axes in (memory, speed):
        axes.set(xlabel="global batch, rows")
        axes.grid(alpha=0.3)
        axes.legend()
    first = reports[0].settings
    slices = f"{first['slices']} slices of " if first["slices"] > 1 else ""
    figure.suptitle(
        f"{first['model']} {first['task']} on {slices}{first['topology']}: compiler estimate, nothing was run"
    )
    figure.savefig(path, dpi=120)
