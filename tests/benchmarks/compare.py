"""Writes docs/compare.md: features of this library and its peers, and what the benchmarks of this machine print.

    make compare                                       # installs the peers; an hour on two quiet cores
    python -m tests.benchmarks.compare --only features # a minute

A cell of the first table is the result of running it (`features`), or names its source. The benchmarks are those that
need no accelerator; each of them is a command of its own, which the page names. A section that --only leaves out keeps
what the page has.
"""

import argparse
import os
import platform
import time
from collections.abc import Sequence

from deberta_jax.versions import version_of

from ..support.paths import REPOSITORY
from .features import FEATURES, answer
from .table import run, write_between

PAGE = REPOSITORY / "docs" / "compare.md"
PACKAGES = ("jax", "flax", "transformers", "torch", "keras-hub", "keras", "sentence-transformers")
# Section of the page -> the command whose output it shows.
BENCHMARKS = {
    "cpu": ("cpu_speed", "--rounds", "4"),
    "predict": ("predict_speed", "--texts", "64", "--rounds", "3"),
    "parity": ("finetune_parity",),
    "input": ("input_rate",),
    "keras-hub": ("keras_hub",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("features", *BENCHMARKS)
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, help="(default: all sections)")
    for section in parser.parse_args().only:
        load = os.getloadavg()[0]
        parts = features() if section == "features" else benchmark(BENCHMARKS[section])
        write_between(PAGE, f"<!-- {section} -->", f"<!-- end of {section} -->", [*parts, stamp(load)])


def features() -> list[str]:
    """Returns the table of features."""
    rows = [
        "| | deberta-jax | transformers | KerasHub | official code |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | {answer(row.ours, 'deberta_jax')} | {answer(row.transformers, 'transformers')} "
            f"| {answer(row.keras_hub, 'keras_hub')} | {answer(row.official, 'DeBERTa')} |"
            for row in FEATURES
        ),
    ]
    return ["\n".join(rows)]


def benchmark(command: Sequence[str]) -> list[str]:
    """Runs a benchmark and returns its command and its output. Raises SystemExit if it fails."""
    module, *options = command
    words = ["python", "-m", f"tests.benchmarks.{module}", *options]
    print("$", *words, flush=True)
    return ["\n".join(["```text", f"$ {' '.join(words)}", *run(f"tests.benchmarks.{module}", *options), "```"])]


def stamp(load: float) -> str:
    """Returns the date, the versions and how busy the machine was: `load` is that of the minute before."""
    cores = f"{os.cpu_count()} CPU cores, load {load:.1f} before"
    return f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {', '.join(versions())}; {cores}."


def versions() -> list[str]:
    """Returns the names and versions of the packages that are installed."""
    found = {package: version_of(package) for package in PACKAGES}
    return [f"{package} {version}" for package, version in found.items() if version != "unknown"]


if __name__ == "__main__":
    main()
