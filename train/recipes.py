"""The published fine-tuning settings, each as a command that says what to expect: `deberta-jax recipe`.

    deberta-jax recipe                                    # the list
    deberta-jax recipe mnli/deberta-v3-large --help       # command, hardware, expected score, and every setting
    deberta-jax recipe mnli/deberta-v3-large --model v3-large --output runs/mnli

A recipe is `finetune` with other defaults and accepts the same options. The settings are those of `experiments` in
microsoft/DeBERTa, which has one script per task and model but none for SQuAD (and its script for RACE does not run,
because an import is missing). The scores are those of its README, measured by its authors on the development sets. None
of them was measured here.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tyro

from deberta_jax.errors import UserError
from deberta_jax.options import parse_options
from deberta_jax.sift import SiftConfig
from deberta_jax.terminal import say

from . import finetune
from .configs import FinetuneConfig, OptimizerConfig, RegularizationConfig
from .task_configs import TaskDataConfig

_V1 = ("deberta-base", "deberta-large", "deberta-xlarge")
_V2 = ("deberta-v2-xlarge", "deberta-v2-xxlarge")
_MODELS = (*_V1, *_V2, "deberta-v3-large")


class Published(NamedTuple):
    """The published settings of a task with a model.

    Attributes:
      epochs: number of epochs.
      warmup: number of steps, or a share of all steps if it is below 1.
      learning_rate: learning rate at the end of the warmup.
      batch_size: examples per step.
      dropout: dropout rate of the classifier.
    """

    epochs: int
    warmup: float
    learning_rate: float
    batch_size: int
    dropout: float


@dataclasses.dataclass(frozen=True)
class _Task:
    """A task and its published settings by model.

    Attributes:
      source: where the examples are from.
      max_length: largest number of tokens per row.
      settings: published settings by model; None where nothing was published.
      from_mnli: whether v1 and v2 start from the model that was fine-tuned on MNLI.
      sift: weight of SiFT's loss, 0 without it; deberta-v3-xsmall has 3 in place of 5.
    """

    source: str
    max_length: int
    settings: Mapping[str, Published | None]
    from_mnli: bool = False
    sift: float = 0.0


def _by_model(*settings: Published | None, **others: Published) -> dict[str, Published | None]:
    """Returns settings by model: those of `_MODELS` in order, then others by name."""
    named = {name.replace("_", "-"): published for name, published in others.items()}
    return dict(zip(_MODELS, settings, strict=True)) | named


TASKS: Mapping[str, _Task] = {
    "mnli": _Task(
        "tfds:glue/mnli",
        256,
        _by_model(
            Published(3, 1000, 3e-5, 64, 0.1),
            Published(3, 1000, 1e-5, 64, 0.2),
            Published(3, 1000, 5e-6, 64, 0.3),
            Published(3, 1000, 4e-6, 64, 0.25),
            Published(3, 1000, 3e-6, 64, 0.3),
            Published(2, 500, 7e-6, 64, 0.3),
            deberta_v3_xsmall=Published(3, 1000, 4.5e-5, 64, 0.1),
            deberta_v3_small=Published(3, 1500, 4.5e-5, 64, 0.2),
            deberta_v3_base=Published(3, 1000, 1.5e-5, 64, 0.1),
        ),
    ),
    "mnli-sift": _Task(  # epochs and learning rates were published for SiFT; the other settings are MNLI's
        "tfds:glue/mnli",
        256,
        {
            "deberta-base": Published(6, 1000, 1.5e-5, 64, 0.1),
            "deberta-v2-xxlarge": Published(6, 1000, 3e-6, 64, 0.3),
            "deberta-v3-xsmall": Published(10, 1000, 5e-5, 64, 0.1),
            "deberta-v3-small": Published(6, 1500, 3.5e-5, 64, 0.2),
            "deberta-v3-base": Published(6, 1000, 1.5e-5, 64, 0.1),
        },
        sift=5.0,
    ),
    "cola": _Task(
        "tfds:glue/cola",
        64,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.15),
            Published(6, 100, 7e-6, 32, 0.15),
            Published(8, 100, 5e-6, 32, 0.2),
            Published(8, 100, 3e-6, 32, 0.2),
            Published(10, 100, 2.5e-6, 32, 0.2),
            Published(10, 50, 5.5e-6, 32, 0.1),
        ),
    ),
    "mrpc": _Task(
        "tfds:glue/mrpc",
        128,
        _by_model(
            Published(6, 50, 2e-5, 32, 0.15),
            Published(6, 50, 1e-5, 32, 0.15),
            Published(8, 50, 7e-6, 32, 0.3),
            Published(6, 50, 3.5e-6, 32, 0.2),
            Published(6, 50, 2e-6, 32, 0.2),
            Published(6, 50, 6e-6, 32, 0.2),
        ),
        from_mnli=True,
    ),
    "qnli": _Task(
        "tfds:glue/qnli",
        512,
        _by_model(
            Published(4, 500, 2e-5, 32, 0.15),
            Published(4, 500, 1e-5, 32, 0.15),
            Published(4, 500, 7e-6, 32, 0.2),
            Published(4, 500, 4e-6, 64, 0.2),
            Published(4, 500, 3e-6, 64, 0.2),
            Published(6, 200, 7e-6, 64, 0.2),
        ),
    ),
    "qqp": _Task(
        "tfds:glue/qqp",
        320,
        _by_model(
            Published(8, 500, 2e-5, 64, 0.15),
            Published(8, 500, 1e-5, 64, 0.15),
            Published(8, 500, 7e-6, 64, 0.2),
            Published(10, 1000, 4e-6, 64, 0.2),
            Published(10, 1000, 3e-6, 64, 0.2),
            Published(6, 1000, 1e-5, 64, 0.2),
        ),
    ),
    "rte": _Task(
        "tfds:glue/rte",
        320,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.2),
            Published(6, 50, 1e-5, 32, 0.2),
            Published(6, 50, 5e-6, 48, 0.2),
            Published(6, 50, 4e-6, 48, 0.2),
            Published(6, 50, 3e-6, 48, 0.2),
            Published(6, 50, 1e-5, 32, 0.3),
        ),
        from_mnli=True,
    ),
    "sst2": _Task(
        "tfds:glue/sst2",
        128,
        _by_model(
            Published(6, 500, 2e-5, 32, 0.15),
            Published(6, 500, 1e-5, 32, 0.15),
            Published(6, 500, 3e-6, 32, 0.2),
            Published(4, 500, 4e-6, 32, 0.2),
            Published(4, 500, 3e-6, 32, 0.2),
            Published(8, 500, 6e-6, 32, 0.1),
        ),
    ),
    "stsb": _Task(
        "tfds:glue/stsb",
        128,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.15),
            Published(4, 100, 7e-6, 32, 0.15),
            Published(4, 100, 7e-6, 32, 0.2),
            Published(4, 100, 4e-6, 32, 0.2),
            Published(4, 100, 3e-6, 32, 0.2),
            Published(4, 50, 7e-6, 32, 0.1),
        ),
        from_mnli=True,
    ),
    "ner": _Task(
        "tfds:conll2003",
        512,
        _by_model(
            Published(15, 0.1, 2e-5, 16, 0),
            Published(15, 0.1, 1e-5, 16, 0),
            Published(15, 0.1, 7e-6, 16, 0),
            Published(15, 0.1, 4e-6, 16, 0),
            Published(15, 0.1, 2.5e-6, 16, 0),
            Published(10, 10, 9e-6, 16, 0),
        ),
    ),
    "record": _Task(
        "tfds:super_glue/record",
        512,
        _by_model(
            Published(3, 1000, 2e-5, 64, 0.3),
            Published(3, 1000, 1e-5, 64, 0.3),
            Published(3, 1000, 7e-6, 64, 0.3),
            Published(3, 1000, 5e-6, 64, 0.15),
            Published(3, 1000, 3e-6, 64, 0.15),
            Published(3, 500, 7e-6, 64, 0.1),
        ),
    ),
    "copa": _Task(
        "tfds:super_glue/copa",
        136,
        _by_model(
            Published(3, 50, 1e-5, 32, 0.1),
            Published(4, 30, 5e-6, 16, 0.1),
            Published(4, 30, 3e-6, 24, 0.1),
            Published(4, 30, 2e-6, 24, 0.1),
            Published(8, 30, 1e-6, 24, 0.1),
            None,
        ),
        from_mnli=True,
    ),
    "race": _Task(
        "tfds:race",
        320,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.2),
            Published(6, 100, 8e-6, 32, 0.2),
            Published(6, 100, 7e-6, 48, 0.2),
            Published(6, 100, 4e-6, 48, 0.2),
            Published(6, 100, 3e-6, 48, 0.2),
            None,
        ),
        from_mnli=True,
    ),
}

# Published scores in percent: MNLI matched / mismatched; MRPC and QQP accuracy (F1); STS-B Pearson (Spearman); ReCoRD
# F1 / exact match.
SCORES: Mapping[str, Mapping[str, str]] = {
    "deberta-base": {"mnli": "88.8 / 88.5"},
    "deberta-large": {
        "mnli": "91.3 / 91.1",
        "sst2": "96.5",
        "qnli": "95.3",
        "cola": "69.5",
        "rte": "91.0",
        "mrpc": "92.6 (94.6)",
        "qqp": "92.3",
        "stsb": "92.8 (92.5)",
    },
    "deberta-xlarge": {"mnli": "91.5 / 91.2"},
    "deberta-v2-xlarge": {"mnli": "91.7 / 91.6"},
    "deberta-v2-xxlarge": {
        "mnli": "91.7 / 91.9",
        "mnli-sift": "92.0 / 92.1",
        "sst2": "97.2",
        "qnli": "96.0",
        "cola": "72.0",
        "rte": "93.5",
        "mrpc": "93.1 (94.9)",
        "qqp": "92.7 (90.3)",
        "stsb": "93.2 (93.1)",
        "copa": "97",
        "record": "94.1 / 93.7",
    },
    "deberta-v3-xsmall": {"mnli": "88.1 / 88.3"},
    "deberta-v3-small": {"mnli": "88.3 / 87.7", "mnli-sift": "88.8 / 88.5"},
    "deberta-v3-base": {"mnli": "90.6 / 90.7", "mnli-sift": "91.0 (matched)"},
    "deberta-v3-large": {
        "mnli": "91.8 / 91.9",
        "sst2": "96.9",
        "qnli": "96.0",
        "cola": "75.3",
        "rte": "92.7",
        "mrpc": "92.2",
        "qqp": "93.0",
        "stsb": "93.0",
    },
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One task with one model.

    Attributes:
      name: TASK/MODEL.
      config: the settings, without the folders `model` and `output`, which the user gives.
      text: command, hardware and expected score.
    """

    name: str
    config: FinetuneConfig
    text: str


def _recipe(task_name: str, model: str, published: Published) -> Recipe:
    task = TASKS[task_name]
    start = f"{model}-mnli" if task.from_mnli and model in (*_V1, *_V2) else model
    sift = SiftConfig(weight=3.0 if task.sift and model == "deberta-v3-xsmall" else task.sift)
    config = FinetuneConfig(
        output=tyro.MISSING,
        model=tyro.MISSING,
        data=TaskDataConfig(train=task.source, max_length=task.max_length),
        batch_size=published.batch_size,
        epochs=published.epochs,
        regularization=RegularizationConfig(classifier_dropout=published.dropout),
        dtype="bfloat16",
        optimizer=OptimizerConfig(
            learning_rate=published.learning_rate, warmup=published.warmup, schedule="warmup_linear"
        ),
        sift=sift,
    )
    score = SCORES.get(model, {}).get(task_name)
    source = "sift/README of microsoft/DeBERTa, model cards" if task.sift else "README of microsoft/DeBERTa"
    name = f"{task_name}/{model}"
    method = f" by SiFT with weight {sift.weight:g}" if task.sift else ""
    expected = f"{score} on the development set ({source})" if score else "no published figure"
    origin = ", which its authors had fine-tuned on MNLI before" if start != model else ", as pre-trained"
    paragraphs = (  # separated by empty lines, because tyro joins lines
        f"Fine-tunes {model} on {task.source.removeprefix('tfds:')}{method} with the published settings.",
        f"Command: deberta-jax convert microsoft/{start} {start}; "
        f"deberta-jax recipe {name} --model {start} --output runs/{task_name}-{model}",
        f"Starts from {start}{origin}.",
        "Hardware: its authors used 8 V100 with 32 GB (MNLI with deberta-large: 2.5 hours). Not run here; `deberta-jax "
        "compile-ahead --task finetune` gives an estimate for a TPU slice.",
        f"Expected: {expected}. Not measured here.",
    )
    text = "\n\n".join(paragraphs)
    return Recipe(name, config, text)


RECIPES: Mapping[str, Recipe] = {
    f"{name}/{model}": _recipe(name, model, published)
    for name, task in TASKS.items()
    for model, published in task.settings.items()
    if published
}


def main(arguments: Sequence[str]) -> None:
    """Runs `deberta-jax recipe ARGUMENTS`: prints the list, or runs `finetune`, which documents its errors.

    Raises:
      UserError: if there is no such recipe; similar names are listed.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        say(listing())
        return
    name, *options = arguments
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"no recipe {name!r}{hint} `deberta-jax recipe` lists them")
    recipe = RECIPES[name]
    finetune.main(
        parse_options(
            FinetuneConfig,
            options,
            default=recipe.config,
            description=recipe.text,
            prog=f"deberta-jax recipe {name}",
        )
    )


def listing() -> str:
    """Returns the list of all recipes, with the scores that their authors measured."""
    lines = ["usage: deberta-jax recipe NAME --model FOLDER --output FOLDER [OPTIONS]", ""]
    for name in RECIPES:
        task, _, model = name.partition("/")
        lines.append(f"  {name:28} {SCORES.get(model, {}).get(task, '')}".rstrip())
    return "\n".join(
        [
            *lines,
            "",
            "Numbers: published development scores in percent, not measured here. Results of a run are fractions.",
        ]
    )
