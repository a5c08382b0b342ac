"""Five tasks of GLUE: their files as their authors published them, official metrics, and settings for small models."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from deberta_jax.errors import MissingFileError


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """A task, its files and the settings of its fine-tuning.

    Attributes:
      title: its name in the table.
      train: where the training file may be in the folder.
      dev: where the development file may be.
      metrics: the official metrics, the main one first.
      max_length: tokens of a row.
      epochs: passes over the training set.
    """

    title: str
    train: tuple[str, ...]
    dev: tuple[str, ...]
    metrics: tuple[str, ...]
    max_length: int
    epochs: float


TASKS = {
    "sst2": GlueTask(
        "SST-2", ("sst2/train.tsv", "SST-2/train.tsv"), ("sst2/dev.tsv", "SST-2/dev.tsv"), ("accuracy",), 48, 0.5
    ),
    "cola": GlueTask(
        "CoLA",
        ("cola/raw/in_domain_train.tsv", "CoLA/train.tsv", "cola/train.tsv"),
        ("cola/raw/mixed_dev.tsv", "CoLA/dev.tsv", "cola/dev.tsv"),
        ("matthews_correlation",),
        32,
        3,
    ),
    "rte": GlueTask("RTE", ("rte/train.tsv", "RTE/train.tsv"), ("rte/dev.tsv", "RTE/dev.tsv"), ("accuracy",), 96, 3),
    "mrpc": GlueTask(
        "MRPC",
        ("mrpc/msr_paraphrase_train.txt", "MRPC/msr_paraphrase_train.txt"),
        ("mrpc/msr_paraphrase_test.txt", "MRPC/msr_paraphrase_test.txt"),
        ("f1", "accuracy"),
        96,
        3,
    ),
    "stsb": GlueTask(
        "STS-B", ("stsb/train.tsv", "STS-B/train.tsv"), ("stsb/dev.tsv", "STS-B/dev.tsv"), ("spearman",), 64, 3
    ),
}


@dataclasses.dataclass(frozen=True)
class Files:
    """The sources of a task, as `--train` and `--validation` take them."""

    train: str
    dev: str

    @property
    def sizes(self) -> list[int]:
        """The bytes of both files, by which other ones are noticed."""
        return [Path(source.partition(":")[2]).stat().st_size for source in (self.train, self.dev)]


def find_files(folder: Path, tasks: Iterable[str]) -> dict[str, Files]:
    """Returns the sources of the tasks. Raises MissingFileError, with all files that are missing."""
    found, missing = {}, []
    for name in tasks:
        paths = []
        for known in (TASKS[name].train, TASKS[name].dev):
            existing = [folder / path for path in known if (folder / path).is_file()]
            paths += existing[:1]
            if not existing:
                missing.append(" or ".join(known))
        if len(paths) == 2:
            found[name] = Files(*(f"glue/{name}:{path}" for path in paths))
    if missing:
        raise MissingFileError(f"{folder} lacks {', '.join(missing)}; put the files there, or name other --tasks")
    return found
