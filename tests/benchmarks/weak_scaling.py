"""Estimates weak scaling with the TPU compiler: what a chip sends and waits for in a step, from 4 to 256 chips.

    python -m tests.benchmarks.weak_scaling --results weak.json --plot weak.png [--meshes data zero=side] [--layers 2]

Runs `deberta-jax compile-ahead` on the pre-training step (RTD, bfloat16) of deberta-v3-base for each topology and mesh,
with the same number of rows per chip. Each report is saved in the results file, and an interrupted run resumes from it.
A case takes minutes; --layers, at least 2, shortens the model for a quick look.

A mesh is "data", or AXIS=SIZE joined by commas, where the size "side" means the last side of the torus (16 of 16x16);
data parallelism uses the remaining devices. A topology is CHIP:SHAPE, or N*CHIP:SHAPE for N slices. Nothing is run. The
time of a collective is its bytes divided by the speed of the links, without latency.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deberta_jax import DebertaConfig
from deberta_jax.train.compile_ahead.tpu_compiler import torus_shape

TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
LENGTH = 512


@dataclasses.dataclass(frozen=True)
class Case:
    """One compilation: a topology, a mesh, the depth of the model and the rows per chip."""

    topology: str
    mesh: str
    layers: int
    rows: int

    @property
    def slices(self) -> int:
        return int(self.topology.partition("*")[0]) if "*" in self.topology else 1

    @property
    def one_slice(self) -> str:
        return self.topology.rpartition("*")[2]

    @property
    def chips(self) -> int:
        return self.slices * math.prod(torus_shape(self.one_slice))

    @property
    def key(self) -> str:
        """The key of the result in the file: everything that it depends on, except the code."""
        return f"{self.topology} {self.mesh} layers {self.layers} rows {self.rows} libtpu {version('libtpu')}"

    def axes(self) -> dict[str, int]:
        """Returns the sizes of the mesh's axes other than data.

        Raises:
          ValueError: the mesh has another form than the module's docstring describes.
        """
        axes = {}
        for word in self.mesh.split(",") if self.mesh != "data" else ():
            axis, _, size = word.partition("=")
            if size != "side" and not size.isdecimal():
                raise ValueError(f"no mesh {self.mesh!r}; give data, or AXIS=SIZE or AXIS=side joined by commas")
            axes[axis] = torus_shape(self.one_slice)[-1] if size == "side" else int(size)
        return axes

    def command(self, model: str) -> list[str]:
        """Returns the command that compiles the case. `model` is the path of a configuration."""
        options = {
            "model": model,
            "topology": self.one_slice,
            "slices": self.slices,
            "global-batch": self.rows * self.chips,
            "sequence-length": LENGTH,
            "alternatives": 0,
            **{f"mesh.{axis}": size for axis, size in self.axes().items()},
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "deberta_jax", "compile-ahead", *words, "--json"]


def compile_case(case: Case, folder: Path) -> dict[str, Any]:
    """Returns the report of compile-ahead. It runs in another process, because libtpu does not free its memory.

    Raises:
      SystemExit: the command failed without a report; its messages are on stderr.
    """
    config = DebertaConfig.named("deberta-v3-base").replace(num_hidden_layers=case.layers)
    model = folder / "model.json"
    model.write_text(json.dumps(config.to_json()), encoding="utf-8")
    done = subprocess.run(case.command(str(model)), stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout.lstrip().startswith("{"):
        raise SystemExit(f"{case.key}: compile-ahead failed with status {done.returncode}; see above")
    return json.loads(done.stdout)


def compile_cases(cases: Sequence[Case], results: Path) -> dict[str, dict[str, Any]]:
    """Returns the reports by the keys of the cases. Adds each missing one to the results file."""
    reports = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    for number, case in enumerate(cases, start=1):
        known = case.key in reports
        print(f"{number} of {len(cases)}: {case.key}{', known' if known else ''}", file=sys.stderr, flush=True)
        if not known:
            with tempfile.TemporaryDirectory() as folder:
                reports[case.key] = compile_case(case, Path(folder))
            new = results.with_suffix(".new")  # replaces the file atomically
            new.write_text(json.dumps(reports, indent=1), encoding="utf-8")
            new.replace(results)
    return reports


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one case, per chip and step. Bytes are in MB, times in milliseconds.

    Attributes:
      chips: number of chips.
      mesh: the mesh, as in `Case`.
      kinds: bytes sent within a slice, by kind of collective.
      links: bytes sent within a slice.
      network: bytes sent to other slices.
      asynchronous: the share of `links` that asynchronous collectives send.
      computing: time of computation.
      communicating: time of collectives.
      waiting: the part of it that computation does not hide.
      step: time of a step.
    """

    chips: int
    mesh: str
    kinds: dict[str, float]
    links: float
    network: float
    asynchronous: float
    computing: float
    communicating: float
    waiting: float
    step: float

    @classmethod
    def of(cls, case: Case, report: dict[str, Any]) -> "Row | None":
        """Reads a report of `compile-ahead --json`. Returns None if the step does not fit."""
        if not report["fits"]:
            return None
        kinds: dict[str, float] = {}
        sent = {"ici": 0.0, "dcn": 0.0}
        asynchronous = 0.0
        for collective in report["cost"]["collectives"]:
            megabytes = collective["wire_bytes"] / 1e6
            sent[collective["network"]] += megabytes
            if collective["network"] == "ici":
                asynchronous += megabytes if collective["asynchronous"] else 0
                kinds[collective["kind"]] = kinds.get(collective["kind"], 0.0) + megabytes
        timing = report["timing"]
        waiting = timing["collective_seconds"]
        return cls(
            chips=case.chips,
            mesh=case.mesh,
            kinds=kinds,
            links=sent["ici"],
            network=sent["dcn"],
            asynchronous=asynchronous / sent["ici"] if sent["ici"] else 0.0,
            computing=1e3 * (timing["compute_seconds"] + timing["unpriced_seconds"]),
            communicating=1e3 * (waiting + timing["hidden_seconds"]),
            waiting=1e3 * waiting,
            step=1e3 * timing["step_seconds"],
        )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of a Markdown table. Scaling is the step time on the fewest chips divided by this step time."""
    kinds = sorted({kind for row in rows for kind in row.kinds})
    titles = ["chips", "mesh", *(f"{kind}, MB" for kind in kinds), "links, MB", "asynchronous", "between slices, MB"]
    titles += ["computing, ms", "communicating, ms", "waiting, ms", "step, ms", "scaling"]
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        first = min((other for other in rows if other.mesh == row.mesh), key=lambda other: other.chips)
        cells = [str(row.chips), row.mesh, *(f"{row.kinds.get(kind, 0):,.0f}" for kind in kinds)]
        cells += [f"{row.links:,.0f}", f"{row.asynchronous:.0%}", f"{row.network:,.1f}"]
        cells += [f"{value:,.1f}" for value in (row.computing, row.communicating, row.waiting, row.step)]
        yield "| " + " | ".join([*cells, f"{first.step / row.step:.1%}"]) + " |"


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Plots bytes sent and times against the number of chips, with a color for each mesh."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    sent, times = figure.subplots(1, 2)
    for number, mesh in enumerate(dict.fromkeys(row.mesh for row in rows)):
        line = sorted((row for row in rows if row.mesh == mesh), key=lambda row: row.chips)
        chips, color = [row.chips for row in line], f"C{number}"
        sent.plot(chips, [row.links for row in line], "o-", color=color, label=f"{mesh}: links of the slice")
        if any(row.network for row in line):
            sent.plot(chips, [row.network for row in line], "s--", color=color, label=f"{mesh}: between slices")
        times.plot(chips, [row.computing for row in line], "o-", color=color, label=f"{mesh}: computing")
        times.plot(chips, [row.communicating for row in line], "s--", color=color, label=f"{mesh}: communicating")
        times.plot(chips, [row.waiting for row in line], "^:", color=color, label=f"{mesh}: waiting")
    sent.set(title="Bytes sent by a chip in a step", ylabel="MB", ylim=(0, None))
    times.set(title="Time of a step", ylabel="ms", ylim=(0, None))
    for axes in (sent, times):
        axes.set(xlabel="chips", xscale="log")
        ticks = sorted({row.chips for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{title}: compiler estimates, nothing was run")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES))
    parser.add_argument("--meshes", nargs="+", default=["data"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=32, help="rows per chip")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for the reports")
    parser.add_argument("--plot", type=Path, help="PNG file")
    options = parser.parse_args()
    cases = [
        Case(topology, mesh, options.layers, options.rows) for mesh in options.meshes for topology in options.topologies
    ]
    for case in cases:  # check all before the first takes minutes to compile
        case.axes()
    reports = compile_cases(cases, options.results)
    rows = [Row.of(case, reports[case.key]) for case in cases]
    for case, row in zip(cases, rows, strict=True):
        if row is None:
            print(f"{case.key}: does not fit")
    fitting = [row for row in rows if row is not None]
    title = f"v3-base with {options.layers} layers, RTD, {options.rows} rows of {LENGTH} tokens per chip"
    print(f"{title}; compiler estimates per chip and step\n")
    print("\n".join(table(fitting)))
    if options.plot and fitting:
        plot(fitting, options.plot, title)
        print(f"saved {options.plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
