"""Updates the tables of compiler estimates in docs/performance.md, between their two marks.

    python -m tests.benchmarks.table             # more than an hour on two cores; needs libtpu and KerasHub

The figures are those of kernel_cost, step_cost and keras_hub, whose docstrings explain them. Nothing runs on a TPU.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from ..support.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "performance.md"
# A line of step_cost: case, seven counts, two columns of MFU, temporaries, peak, gathers; then seconds, which vary.
STEP = re.compile(
    r"(?P<case>[a-z\-]+) +(?P<counts>(?:[\d.]+ +){7})(?P<estimate>-|[\d.]+% \([\d.]+%\)) +"
    r"(?P<least>-|[\d.]+% \([\d.]+%\)) +(?P<rest>[\d.]+ +[\d.]+ +\d+) +\d+$"
)
BEGIN, END = "<!-- tests.benchmarks.table -->", "<!-- end -->"


CHIPS = ("--chips", "v4", "v5e", "v5p", "v6e", "tpu7x")
OTHER_CHIPS = ("v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1")  # the default is v5e


def main() -> None:
    parts = [
        f"jax {version('jax')}, libtpu {version('libtpu')}; all figures are compiler estimates, none is a measurement.",
        kernels("", run("tests.benchmarks.kernel_cost", *CHIPS)),
        kernels(
            ", where the backward kernel reads the probabilities that the forward kernel has kept",
            run("tests.benchmarks.kernel_cost", *CHIPS, "--keep", "--lengths", "128", "512"),
        ),
        steps(
            run("tests.benchmarks.step_cost", "--cases", "layer", "layer-dropout", "mlm-head", "forward", "rtd"),
            run("tests.benchmarks.step_cost", "--topologies", *OTHER_CHIPS, "--cases", "layer", "rtd"),
        ),
        peer(run("tests.benchmarks.keras_hub")),
    ]
    write_between(PAGE, BEGIN, END, parts)


def write_between(page: Path, begin: str, end: str, parts: list[str]) -> None:
    """Replaces what is between two marks of a page.

    Raises:
      SystemExit: if the page does not contain each mark once.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{page} must contain {begin} and {end} once each")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text("\n\n".join([before + begin, *parts, end + after]), encoding="utf-8")
    print(f"updated {page}")


def run(module: str, *options: str) -> list[str]:
    """Runs a benchmark and returns the lines that it prints, which are also shown as they appear."""
    lines = []
    with subprocess.Popen([sys.executable, "-m", module, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        raise SystemExit(f"{module} failed")
    return lines


def kernels(which: str, lines: list[str]) -> str:
    """Returns the table of kernels, with a row for each chip and length. `which` is a part of its title.

    A line of kernel_cost is: chip tokens dropout, then bundles, busiest unit and its share of forward and of backward.
    """
    rows: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if match := re.match(r"(\w+) +(\d+) +([\d.]+) +(\d+) +(\w+) +(\d+%) +(\d+) +(\w+) +(\d+%)$", line):
            chip, tokens, _, forward, unit, share, backward, other_unit, other_share = match.groups()
            row = rows.setdefault((chip, tokens), [])
            row += [forward, backward] if row else [forward, f"{unit} {share}", backward, f"{other_unit} {other_share}"]
    header = ["chip", "tokens", "forward", "busiest", "backward", "busiest", "forward, dropout", "backward, dropout"]
    title = (
        f"The attention kernel{which}: bundles (about cycles) per sequence and head, head size 64, bfloat16, segments:"
    )
    return f"{title}\n\n{table(header, ([*key, *row] for key, row in rows.items()))}"


def steps(*outputs: list[str]) -> str:
    """Returns the table of training steps. Each block of lines of step_cost begins with its chip."""
    rows, chip = [], ""
    for line in (line for output in outputs for line in output):
        if match := re.match(r"compiler estimates for one chip of (\w+):", line):
            chip = match[1]
        elif match := STEP.match(line):
            rows.append(
                [
                    chip,
                    match["case"],
                    *match["counts"].split(),
                    *match.group("estimate", "least"),
                    *match["rest"].split(),
                ]
            )
        elif "does not fit" in line:
            rows.append([chip, *line.split(maxsplit=1)])
    header = [
        *("chip", "case", "Mcycles", "in kernels", "from bytes", "bound", "bundles", "matrix units at peak"),
        *(
            "HBM at peak",
            "MFU (without relative terms)",
            "MFU by bound",
            "temporaries, GB",
            "peak, GB",
            "score-sized gathers",
        ),
    ]
    title = (
        "v3-base (`layer`: one layer, forward and backward, 32 rows of 512 tokens; `mlm-head`: 19,661 masked "
        "positions, a vocabulary of 128,100; `forward`: all layers, 8 rows of 512 tokens; `rtd`: a pre-training step "
        "of 32 rows of 512 tokens). Mcycles are the compiler's estimate; `from bytes` is the part of it for which it "
        "has none. The bound adds up the largest of the three columns after it, instruction by instruction:"
    )
    return f"{title}\n\n{table(header, rows)}"


def peer(lines: list[str]) -> str:
    """Returns the output of keras_hub as a block of code."""
    return "\n".join(["The encoder compared with KerasHub's:", "", "```text", *(line for line in lines if line), "```"])


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
