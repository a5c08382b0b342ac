"""Takes small models through every command, in the folders that other libraries write, and prints a table.

    python -m tests.benchmarks.hub_folders [--python VENV/bin/python ...] [--cases sharded ...]

Each model has random weights. Its folder is written by `tests.support.hub_folders`, in this environment and in that of
every --python, which may have another version of transformers, sentence-transformers or PEFT. Then each command runs on
the folder itself: `convert`, `verify`, `finetune` for one step, `export`. The exported model is loaded by transformers,
and its logits must equal those of the model that was saved. The exit status is 1 if a step of any case fails.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax import load_pretrained
from deberta_jax.convert import from_pytorch, to_pytorch, verify
from deberta_jax.errors import one_line
from deberta_jax.train import finetune

from ..support.configs import finetune_config
from ..support.novel import small_tokenizer
from ..support.paths import REPOSITORY
from .table import table

STEPS = ("convert", "verify", "finetune", "export", "transformers")
WRITERS = REPOSITORY / "tests" / "support" / "hub_folders.py"
TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[], help="further Python programs that write the folders")
    parser.add_argument("--cases", nargs="*", default=[], help="names of folders (default: all)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_tokenizer(folder / "tokenizer", folder / "text.txt")
        os.environ["DEBERTA_JAX_CACHE"] = str(folder / "cache")
        rows = []
        for number, python in enumerate([sys.executable, *options.python]):
            output = folder / str(number)
            output.mkdir()
            command = [python, str(WRITERS), str(folder / "tokenizer"), str(output), *options.cases]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for reference in sorted(output.glob("*.npz")):
                results = take_through(reference.with_suffix(""), folder)
                rows.append([reference.stem, str(np.load(reference)["written_by"]), *results.values()])
    print(table(["folder", "written by", *STEPS], rows))
    sys.exit(any("failed" in cell for row in rows for cell in row))


def take_through(folder: Path, work: Path) -> dict[str, str]:
    """Runs every step on a folder that `tests.support.hub_folders` wrote, and returns its result by name."""
    results = {}
    for name, step in steps(folder, work / f"{folder.parent.name}-{folder.name}"):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                results[name] = step() or "ok"
        except Exception as error:  # the table shows every failure
            results[name] = f"failed: {type(error).__name__}: {one_line(error)}"
    return results


def steps(folder: Path, work: Path) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Yields name and function of each step, in order."""
    work.mkdir()
    data = work / "train.tsv"
    data.write_text("text\tlabel\n" + "it was a dark night\talpha\nthe sea was calm\tbeta\na letter came\tgamma\n" * 3)
    # GLiNER's other layers stand beside the encoder; the later commands take the folder that was converted.
    parts, source = (("deberta",), work / "converted") if folder.name == "gliner_encoder" else (None, folder)
    yield (
        "convert",
        lambda: from_pytorch.main(from_pytorch.ConvertConfig(str(folder), work / "converted", include=parts)),
    )
    yield "verify", lambda: verify.main(verify.VerifyConfig(str(folder), work / "converted"))
    run = finetune_config(
        output=work / "run",
        model=source,
        train=str(data),
        validation=str(data),
        steps=1,
        batch_size=8,
        max_length=16,
        save_every=0,
    )
    yield "finetune", lambda: check_run(finetune.main(run), work / "run")
    yield "export", lambda: to_pytorch.main(to_pytorch.ExportConfig(str(source), work / "exported"))
    yield "transformers", lambda: compare(folder, work / "exported")


def check_run(results: Any, output: Path) -> None:
    """Raises if a run has no results or its model is not finite."""
    assert results["validation"]
    _, params = load_pretrained(output / "model")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params)))


def compare(folder: Path, exported: Path) -> str:
    """Loads the exported model in transformers and returns the largest difference to the outputs that were saved."""
    import torch
    import transformers

    from ..support import hub_folders

    reference = np.load(folder.with_suffix(".npz"))
    suffix = str(reference["suffix"])
    model, loading = getattr(transformers, f"DebertaV2{suffix}").from_pretrained(
        exported, output_loading_info=True, dtype=torch.float32
    )
    unused = {*loading["missing_keys"], *loading["unexpected_keys"]}
    assert not unused, unused
    difference = np.abs(hub_folders.outputs(model.eval(), suffix) - reference["outputs"]).max()
    assert difference <= TOLERANCE * np.abs(reference["outputs"]).max(), f"outputs differ by {difference:.1e}"
    return f"equal to {difference:.0e}"


if __name__ == "__main__":
    main()
