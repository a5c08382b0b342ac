"""Runs of several processes of `recorded_pretrain`: what they need, how they are started, what they have trained on."""

import collections
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta_jax import DebertaConfig
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train.configs import PretrainConfig
from deberta_jax.train.data import prepare
from deberta_jax.train.reporting.jsonl import read_records

from .configs import pretrain_config
from .novel import small_tokenizer
from .small_models import TINY

BATCH = 8
DEAD_AFTER, STALL_AFTER = 6.0, 12.0


def prepare_home(folder: Path, model: DebertaConfig = TINY) -> None:
    """Writes text, tokenizer, corpus and model configuration of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    small_tokenizer(folder / "tokenizer", text, lines=600)
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    settings = {"sequence_length": 32, "boundary": "blank_line", "held_out_fraction": 0.05, "seed": 0}
    prepare.prepare((text,), tokenizer, folder / "corpus", **settings)
    (folder / "model.json").write_text(json.dumps(model.to_json()), encoding="utf-8")


def home_settings(home: Path, output: Path, **options: Any) -> PretrainConfig:
    """Returns the settings of a run in this process with what `prepare_home` wrote, and other options."""
    return pretrain_config(
        output=output,
        tokenizer=home / "tokenizer",
        corpus=(str(home / "corpus"),),
        model=str(home / "model.json"),
        sequence_length=32,
        batch_size=BATCH,
        **options,
    )


def arguments(
    home: Path,
    output: Path,
    *,
    steps: int,
    save_every: int,
    options: tuple[str, ...] = (),
    records: Path | None = None,
) -> list[str]:
    """Returns the arguments with which Python runs `recorded_pretrain`.

    Args:
      home: the folder of `prepare_home`.
      output: the folder of the run.
      steps: the last step.
      save_every: number of steps between two checkpoints.
      options: further options of `deberta-jax pretrain`.
      records: folder for the records (default: `records` in the folder of the run).
    """
    records = records or output / "records"
    records.mkdir(parents=True, exist_ok=True)
    return [
        *("-m", "tests.support.recorded_pretrain", str(records)),
        *("--output", str(output), "--tokenizer", str(home / "tokenizer"), "--corpus", str(home / "corpus")),
        *("--model", str(home / "model.json"), "--sequence-length", "32", "--batch-size", str(BATCH)),
        *("--steps", str(steps), "--save-every", str(save_every), "--evaluate-every", "0", "--log-every", "1"),
        *("--optimizer.learning-rate", "2e-3", "--keep", "3"),
        *("--hosts.dead-after", str(DEAD_AFTER), "--hosts.stall-after", str(STALL_AFTER)),
        *("--compilation-cache", str(home / "compiled")),
        *options,
    ]


def losses(output: Path) -> dict[int, float]:
    """Returns the loss of the generator, or of the masked language model, by step."""
    path = output / "metrics.jsonl"
    return {record["step"]: record["generator_loss"] for record in read_records(path)} if path.exists() else {}


def last_step(output: Path) -> int:
    """Returns the last step that was logged, or 0."""
    return max(losses(output), default=0)


def checkpoints(output: Path) -> list[int]:
    """Returns the steps that are complete on disk, ascending."""
    return sorted(int(path.name) for path in (output / "checkpoints").iterdir() if path.name.isdigit())


@dataclass
class StepRows:
    """The rows that one step was taken on: their numbers in the stream and their fingerprints."""

    numbers: list[int]
    tokens: list[str]


def recorded_rows(output: Path, *, steps: int) -> list[StepRows]:
    """Returns the rows of every step, from the records of all processes.

    A step that was taken several times counts as it was taken last: a process may have read ahead of the last step of
    the others, or a restart has repeated steps.
    """
    taken: dict[int, dict[tuple[int, ...], list[str]]] = collections.defaultdict(dict)
    for path in sorted((output / "records").glob("rows-*.jsonl")):
        newest = {record["step"]: record for record in read_records(path)}
        for step, record in newest.items():
            taken[step][tuple(record["rows"])] = record["tokens"]
    return [
        StepRows(
            [number for numbers in sorted(taken[step]) for number in numbers],
            [token for numbers in sorted(taken[step]) for token in taken[step][numbers]],
        )
        for step in range(1, steps + 1)
    ]


def faulty_rows(output: Path, *, steps: int) -> tuple[int, int]:
    """Returns how many rows of the stream were left out, and how many were trained on again."""
    counts = collections.Counter(number for rows in recorded_rows(output, steps=steps) for number in rows.numbers)
    lost = sum(1 for number in range(steps * BATCH) if not counts[number])
    return lost, sum(count - 1 for count in counts.values() if count > 1)
