"""Plots the reports of a sweep over batch sizes and meshes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deberta_jax.errors import UserError

from ..reporting.pictures import open_figure, picture_name
from .report import Report, describe_slices
from .tpu_compiler import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_plot_path(path: Path) -> None:
    """Creates the folder of a plot, so that a mistake in the path shows before hours of compiling.

    Raises:
      UserError: the file name does not end in a format that matplotlib writes.
      OSError: the folder cannot be created.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise UserError(f"cannot save a plot as {str(path)!r}; give a file name that ends in .{', .'.join(formats)}")
    path.parent.mkdir(parents=True, exist_ok=True)


def plot_sweep(reports: Sequence[Report], path: Path) -> None:
    """Plots memory and speed against the batch, with a line for each size of the fsdp axis."""
    config = reports[0].config
    with open_figure(path, size=(11, 4.5)) as figure:
        memory_axes, speed_axes = figure.subplots(1, 2)
        _draw_lines(memory_axes, speed_axes, reports)
        name = f"{picture_name(config.model)} {config.task} on {describe_slices(config)}"
        figure.suptitle(f"{name}: compiler estimates, nothing was run")


def _draw_lines(memory_axes: "Axes", speed_axes: "Axes", reports: Sequence[Report]) -> None:
    for number, fsdp in enumerate(dict.fromkeys(report.mesh["fsdp"] for report in reports)):
        line = sorted(
            (report for report in reports if report.mesh["fsdp"] == fsdp), key=lambda report: report.config.global_batch
        )
        color, label = f"C{number}", f"fsdp {fsdp}"
        memory = [(report.config.global_batch, report.memory.needed_bytes / GIB) for report in line]
        memory_axes.plot(*zip(*memory, strict=True), color=color, label=label)
        for report, point in zip(line, memory, strict=True):
            memory_axes.plot(*point, "o" if report.fits else "x", color=color)
        speed = [
            (report.config.global_batch, report.timing.tokens_per_second / 1e6) for report in line if report.timing
        ]
        if speed:
            speed_axes.plot(*zip(*speed, strict=True), "o-", color=color, label=label)
    memory_axes.axhline(reports[0].memory.available_bytes / GIB, color="grey", linestyle="--", label="available")
    memory_axes.set(title="Memory per device (x: does not fit)", ylabel="GiB", ylim=(0, None))
    speed_axes.set(title="Speed of all chips", ylabel="million tokens/s", ylim=(0, None))
    for axes in (memory_axes, speed_axes):
        axes.set(xlabel="global batch (rows)")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
