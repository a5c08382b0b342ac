"""Fine-tunes models on tasks of GLUE, beside the same model from random weights and TF-IDF.

    python -m tests.benchmarks.glue GLUE MODEL                        # all five tasks, three seeds
    python -m tests.benchmarks.glue GLUE tiny=runs/tiny/discriminator --tasks sst2

GLUE is a folder with the files of the tasks as their authors published them (`glue_files` has the names). Models are
measured on the official development sets. MRPC has none, only GLUE's choice of some training pairs, and is measured on
its official test set; it is trained on all training pairs.

All models and random weights are trained with the same examples and steps. There is no choice of a step by the
development set. The learning rates of pretrained and of random weights are options of their own, because random weights
may need another one. TF-IDF reads the whole training set. Its result is the best of twelve settings on the development
set, which favors it.

The table has means and standard deviations over the seeds. A finished run is not repeated when the same command is
started again, and the table is written after each run: `results.json` and `results.md` in the output folder.
"""

import argparse
import dataclasses
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from deberta_jax import DebertaConfig
from deberta_jax.atomic_files import write_file
from deberta_jax.errors import UserError
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import say
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, OptimizerConfig, TaskDataConfig
from deberta_jax.train.model_folders import model_folder
from deberta_jax.train.tasks.classification.examples import load_examples
from deberta_jax.train.tasks.metrics import compute_metrics
from deberta_jax.train.tfidf import predict_by_tfidf

from .glue_files import TASKS, Files, find_files
from .study import Study, one_line_errors, print_page, shown, until_time_is_over
from .table import table

BATCH = 32
RATE = 3e-4  # random weights of six layers learn nothing at 1e-3
TFIDF, RANDOM = "TF-IDF", "random weights"
TFIDF_GRID = tuple(itertools.product((1, 2, 3), (0.1, 1.0, 4.0, 16.0)))  # longest group of words, strength


SHORT = {"matthews_correlation": "Matthews", "f1": "F1", "spearman": "Spearman"}


@dataclasses.dataclass(frozen=True)
class Start:
    """What fine-tuning starts from.

    Attributes:
      name: the row of the table.
      model: the folder of a model.
      random: take its configuration and tokenizer alone.
      folder: the folder of its runs (default: `name`); several models of a row have one each.
    """

    name: str
    model: Path
    random: bool = False
    folder: str = ""


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """The settings that all runs share.

    Attributes:
      files: the sources of each task to run.
      seeds: the seeds of each model.
      rate: learning rate of pretrained weights.
      random_rate: learning rate of random weights.
      steps: number of steps, instead of the epochs of the tasks.
    """

    files: Mapping[str, Files]
    seeds: Sequence[int]
    rate: float = RATE
    random_rate: float = RATE
    steps: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("glue", type=Path, help="folder of the files of GLUE")
    parser.add_argument("models", nargs="+", help="folders or names of models, or NAME=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("runs/glue"))
    parser.add_argument("--max-hours", type=float, default=float("inf"))
    add_options(parser)
    options = parser.parse_args()
    with one_line_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Runs what is not yet there, and prints the table. Raises UserError."""
    settings = fine_tuning(options)
    starts = [named_start(given) for given in options.models]
    if len({start.name for start in starts}) < len(starts):
        raise UserError("two models have the same name; give them as NAME=FOLDER")
    starts.append(Start(RANDOM, starts[0].model, random=True))
    study = Study(options.output, options.max_hours)
    with until_time_is_over():
        for results in run_all(study, settings, starts):
            write_file(study.output / "results.json", to_json(results, indent=2) + "\n")
            write_file(study.output / "results.md", markdown(settings, starts, results) + "\n")
    print_page(study.output / "results.md")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `FineTuning`."""
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="(default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each fine-tuning (default: 3)")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate of pretrained weights (default: 3e-4)")
    parser.add_argument("--random-rate", type=float, default=RATE, help="that of random weights (default: 3e-4)")
    parser.add_argument(
        "--finetune-steps", type=int, help="steps of each fine-tuning (default: the epochs of the task)"
    )


def fine_tuning(options: argparse.Namespace) -> FineTuning:
    """Returns the settings that the options name. Raises as `find_files`, or UserError for numbers out of range."""
    if options.seeds < 1:
        raise UserError(f"seeds is {options.seeds}; it must be at least 1")
    files = find_files(options.glue, options.tasks)
    return FineTuning(files, range(options.seeds), options.rate, options.random_rate, options.finetune_steps)


def named_start(given: str) -> Start:
    """Returns the model of an argument: NAME=FOLDER, a folder or a name. Raises MissingFileError if there is none."""
    name, equals, folder = given.partition("=")
    model = Path(folder if equals else given)
    if name in (RANDOM, TFIDF):
        raise UserError(f"{given!r}: {name!r} is a row of the table already; choose another name")
    return Start(name if equals else model.name, model_folder(model))


# -------------------------------------------------------------------- runs

Results = dict[str, dict[str, dict[str, list[float]]]]  # values by start, task and metric


def run_all(study: Study, settings: FineTuning, starts: Sequence[Start]) -> Iterable[Results]:
    """Runs what is not yet there and yields all results after each run: TF-IDF first, then seed by seed.

    Raises:
      StoppedError: time is over, or the process was asked to stop.
      UserError: a file cannot be read, or the output folder has results of other settings.
    """
    results: Results = {}

    def add(start: str, task: str, metrics: Mapping[str, float]) -> Results:
        for metric in TASKS[task].metrics:
            values = results.setdefault(start, {}).setdefault(task, {}).setdefault(metric, [])
            if metrics[metric] is not None:  # a correlation with constant predictions is undefined
                values.append(metrics[metric])
        return results

    for task in settings.files:
        yield add(TFIDF, task, tfidf(study, task, settings.files[task])["metrics"])
    for seed, task, start in itertools.product(settings.seeds, settings.files, starts):
        yield add(start.name, task, fine_tune(study, settings, task, start, seed))


def fine_tune(study: Study, settings: FineTuning, task: str, start: Start, seed: int) -> dict[str, float]:
    """Returns the metrics of the development set after one fine-tuning. Its weights are deleted."""
    name = f"fine-tuning/{start.folder or start.name}/{task}/seed-{seed}"
    known, files = TASKS[task], settings.files[task]
    config = FinetuneConfig(
        output=study.output / name,
        model=start.model,
        random_weights=start.random,
        data=TaskDataConfig(train=files.train, validation=files.dev, max_length=known.max_length),
        batch_size=BATCH,
        epochs=known.epochs,
        steps=settings.steps,
        optimizer=OptimizerConfig(learning_rate=settings.random_rate if start.random else settings.rate),
        save_every=200,
        keep=1,
        log_every=50,
        seed=seed,
    )
    inputs = {
        "model": DebertaConfig.from_json(start.model).to_json() if start.random else model_digest(start.model),
        "files": files.sizes,
        "max_length": known.max_length,
        "epochs": known.epochs if settings.steps is None else None,
        "steps": settings.steps,
        "learning rate": config.optimizer.learning_rate,
    }

    def run() -> dict[str, float]:
        say(f"\n{start.name}, {known.title}, seed {seed}")
        limited = dataclasses.replace(config, max_seconds=study.seconds_left())
        return finetune.main(limited)["validation"]

    result = study.once(f"{name}/result.json", inputs, run)
    for part in ("checkpoints", "model", "best"):  # a hundred runs would fill a disk
        shutil.rmtree(config.output / part, ignore_errors=True)
    return result


def model_digest(model: Path) -> str:
    """Returns a digest of the model in a folder, through the digests that `save_pretrained` wrote, or its path."""
    digests = model / "model.sha256"
    return hashlib.sha256(digests.read_bytes()).hexdigest()[:16] if digests.is_file() else str(model)


def tfidf(study: Study, task: str, files: Files) -> dict[str, Any]:
    """Returns the metrics and the settings of the best TF-IDF baseline of `TFIDF_GRID`."""

    def run() -> dict[str, Any]:
        say(f"\nTF-IDF, {TASKS[task].title}")
        data = load_examples(files.train, validation=files.dev)
        texts, labels = {}, {}
        for split in ("train", "validation"):
            examples = list(data.splits[split])
            pairs = [(example.text,) if example.pair is None else (example.text, example.pair) for example in examples]
            texts[split], labels[split] = pairs, np.array([example.label for example in examples])
        tried = []
        for longest, strength in TFIDF_GRID:
            predicted = predict_by_tfidf(
                texts["train"],
                labels["train"],
                texts["validation"],
                longest=longest,
                strength=strength,
                regression=not data.label_names,
            )
            metrics = compute_metrics(TASKS[task].metrics, predicted, labels["validation"])
            tried.append({"longest": longest, "strength": strength, "metrics": metrics})
        return max(tried, key=lambda one: one["metrics"][TASKS[task].metrics[0]])

    return study.once(f"tfidf/{task}.json", {"grid": TFIDF_GRID, "files": files.sizes}, run)


# -------------------------------------------------------------------- tables


def markdown(settings: FineTuning, starts: Sequence[Start], results: Results) -> str:
    """Returns the table of all results, in percent, and under it what each model gained, in points."""
    header = [
        "from",
        *(f"{TASKS[task].title} ({' / '.join(map(_short, TASKS[task].metrics))})" for task in settings.files),
    ]
    names = list(dict.fromkeys([*(start.name for start in starts), TFIDF]))
    rows = []
    for name in names:
        models = sum(start.name == name for start in starts)
        expected = 1 if name == TFIDF else models * len(settings.seeds)
        cells = []
        for task in settings.files:
            values = results.get(name, {}).get(task, {})
            cells.append(" / ".join(shown(values.get(metric, []), expected=expected) for metric in TASKS[task].metrics))
        rows.append([name, *cells])
    gains = [line for name in names if name not in (RANDOM, TFIDF) for line in _gains(name, results)]
    return "\n".join([table(header, rows), *(["", *gains] if gains else [])])


def _short(metric: str) -> str:
    return SHORT.get(metric, metric)


def _gains(name: str, results: Results) -> Iterable[str]:
    """Yields one line for each other row of the table: the differences of the main metrics, in points."""
    for other in (RANDOM, TFIDF):
        differences = []
        for task, values in results.get(name, {}).items():
            metric = TASKS[task].metrics[0]
            theirs = results.get(other, {}).get(task, {}).get(metric)
            if values[metric] and theirs:
                points = 100 * (np.mean(values[metric]) - np.mean(theirs))
                differences.append(f"{TASKS[task].title} {points:+.1f}")
        if differences:
            yield f"* {name} minus {other}: {', '.join(differences)}"


if __name__ == "__main__":
    main()
