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
import textwrap
from collections.abc import Mapping, Sequence

import tyro

from deberta_jax.completion import option_words
from deberta_jax.errors import UserError
from deberta_jax.help_text import HelpTexts
from deberta_jax.options import parse_options
from deberta_jax.sift import SiftConfig
from deberta_jax.store_paths import local_settings
from deberta_jax.terminal import say

from . import finetune
from .configs import FinetuneConfig, OptimizerConfig, RegularizationConfig
from .published_settings import SCORES, TASKS, V1, V2, Published
from .task_configs import TaskDataConfig

# The options that `deberta-jax recipe NAME --help` shows.
_COMMON = ("batch-size", "epochs", "optimizer.learning-rate", "accumulation", "dtype", "select", "seeds", "log")


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
    start = f"{model}-mnli" if task.from_mnli and model in (*V1, *V2) else model
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
    if not arguments:
        say(listing())
        return
    if arguments[0] in ("-h", "--help", "--help-all"):
        say(usage())
        return
    name, *options = arguments
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise UserError(f"no recipe {name!r}{hint} `deberta-jax recipe` lists them")
    recipe = RECIPES[name]
    config = parse_options(
        FinetuneConfig,
        options,
        default=recipe.config,
        texts=HelpTexts(
            description=recipe.text,
            examples=(f"--model {recipe.name.partition('/')[2]} --output runs/{recipe.name.replace('/', '-')}",),
            common=_COMMON,
        ),
        prog=f"deberta-jax recipe {name}",
    )
    with local_settings(config) as config:
        finetune.main(config)


def completion_words() -> list[str]:
    """Returns what may follow `deberta-jax recipe`, for the completion of a shell."""
    return [*RECIPES, *option_words(FinetuneConfig)]


def usage() -> str:
    """Returns the help of the command itself."""
    models = dict.fromkeys(name.partition("/")[2] for name in RECIPES)
    return "\n".join(
        [
            "usage: deberta-jax recipe TASK/MODEL --model FOLDER --output FOLDER [OPTIONS]",
            "",
            "Fine-tunes with the published settings of a task and a model: `finetune` with other defaults.",
            "",
            "TASK is one of",
            *textwrap.wrap(", ".join(TASKS), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False),
            "MODEL is one of",
            *textwrap.wrap(", ".join(models), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False),
            "",
            "examples",
            "  deberta-jax recipe                                     # lists all, with their published scores",
            "  deberta-jax recipe mnli/deberta-v3-large --help        # command, hardware, expected score, options",
            "  deberta-jax recipe mnli/deberta-v3-large --model v3-large --output runs/mnli",
        ]
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
