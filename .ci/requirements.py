#!/usr/bin/env python3
"""Checks that the bounds in pyproject.toml admit what people install beside deberta-jax, and writes the pinned sets.

  python .ci/requirements.py table    resolve every combination below, print a table, and exit with 1 if one fails
  python .ci/requirements.py write    write requirements/lowest.txt and tpu_scripts/constraints.txt from pyproject.toml

Needs the program uv and a package index. Nothing is installed: uv reads only the metadata of the packages.
"""

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
# What people have in the same environment. Versions are given where pip would otherwise fall back to a release of years
# ago, and call that a solution.
BESIDE = (
    "",
    "transformers==4.57.*",
    "transformers>=5",
    "gliner>=0.2.24",
    "gliner>=0.2.20 transformers==4.57.*",
    "sentence-transformers>=5",
    "sentence-transformers>=5 transformers==4.57.*",
    "keras-hub>=0.25",
    "tensorflow>=2.20",
    "datasets>=4 evaluate peft>=0.17",
    "jax[cuda12]",
    "jax[cuda13]",
    "jax[tpu]",
    "numpy==2.1.* jax==0.10.2",
    "pyarrow==18.* jax==0.10.2",
    "scikit-learn==1.6.* matplotlib==3.9.* rich==14.*",
)
SHOWN = ("jax", "numpy", "transformers", "tokenizers", "huggingface-hub", "pyarrow", "protobuf")
# Platforms other than Linux. `promise`, of tensorflow-datasets, is Python code without a wheel.
PLATFORMS = ("x86_64-pc-windows-msvc", "aarch64-apple-darwin", "aarch64-unknown-linux-gnu")
WHEELS = ("--only-binary=:all:", "--no-binary=promise")


def resolve(python: str, beside: str, extras: tuple[str, ...], *options: str) -> tuple[dict[str, str], str]:
    """Returns the versions that uv finds, and its reason if it finds none."""
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", f"--python-version={python}"]
    inputs = [*(f"--extra={extra}" for extra in extras), "pyproject.toml", "-"]
    done = subprocess.run(
        [*command, *options, *inputs],
        cwd=REPOSITORY,
        input="\n".join(beside.split()),
        capture_output=True,
        text=True,
        check=False,
    )
    pins = re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE)
    return (dict(pins), "") if done.returncode == 0 else ({}, " ".join(done.stderr.split()))


def print_table() -> int:
    """Prints one row per Python and combination. Returns how many have no solution."""
    rows = [(python, beside, ()) for python in PYTHONS for beside in BESIDE]
    rows += [
        (python, platform, (f"--python-platform={platform}", *WHEELS)) for python in PYTHONS for platform in PLATFORMS
    ]
    failures = 0
    print("| Python | [train,convert] with |", " | ".join(SHOWN), "|")
    print("|---|---|" + "---|" * len(SHOWN))
    for python, label, options in rows:
        pins, reason = resolve(python, "" if options else label, ("train", "convert"), *options)
        failures += not pins
        cells = " | ".join(pins.get(name, "") for name in SHOWN) if pins else f"NO SOLUTION: {reason}"
        print(f"| {python} | {label or 'nothing else'} | {cells} |", flush=True)
    print(f"{len(rows) - failures} of {len(rows)} resolve")
    return failures


def write_pins() -> None:
    """Writes both pinned sets with a header that says what they are."""
    for path, meaning, python, extras, options in (
        (
            "requirements/lowest.txt",
            "The oldest versions that pyproject.toml allows, on Python 3.11. CI runs the fast tests with them.",
            "3.11",
            ("train", "convert", "test"),
            ("--resolution=lowest-direct",),
        ),
        (
            "tpu_scripts/constraints.txt",
            "The versions that pods install, on Python 3.12. CI runs the fast tests with them.",
            "3.12",
            ("train", "convert", "tpu", "test"),
            (),
        ),
    ):
        pins, reason = resolve(python, "", extras, "--python-platform=x86_64-manylinux_2_35", *options)
        if not pins:
            sys.exit(f"{path}: {reason}")
        lines = [f"# {meaning}", "# Written by `python .ci/requirements.py write`.", *map("==".join, pins.items())]
        (REPOSITORY / path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"wrote {path}: {len(pins)} packages")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["table"]:
            sys.exit(1 if print_table() else 0)
        case ["write"]:
            write_pins()
        case _:
            sys.exit(__doc__)
