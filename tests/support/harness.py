"""The way of a published model through the commands: `convert`, `finetune`, `export`."""

import json
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.__main__ import main


def torch_and_transformers() -> tuple[Any, Any]:
    """Returns both packages; skips the test where one is missing."""
    torch = pytest.importorskip("torch", reason="torch is not installed; transformers needs it")
    return torch, pytest.importorskip("transformers", reason="transformers is not installed")


def convert_finetune_export(home: Path) -> Path:
    """Converts home/published, teaches it to tell apart two sentences that differ by a word, and exports it.

    Returns:
      The folder of the exported classifier, whose accuracy is 1.
    """
    assert main(["convert", str(home / "published"), str(home / "jax")]) == 0
    rows = [f"{'the man' if number % 2 else 'the woman'} was very happy\t{number % 2}" for number in range(64)]
    for split in ("train", "dev"):
        (home / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    options = {
        "output": home / "run",
        "model": home / "jax",
        "train": home / "train.tsv",
        "validation": home / "dev.tsv",
        "max-length": 40,
        "batch-size": 16,
        "steps": 40,
        "evaluate-every": 40,
        "optimizer.learning-rate": 3e-3,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["finetune", *arguments]) == 0
    assert json.loads((home / "run" / "results.json").read_text())["validation"]["accuracy"] == 1
    assert main(["export", str(home / "run" / "model"), str(home / "back")]) == 0
    return home / "back"
