"""The published fine-tuning settings, each as a command that states what to expect: `deberta-jax recipe`.

    deberta-jax recipe                                    # the list
    deberta-jax recipe mnli/deberta-v3-large --help       # command, hardware, expected score, and every setting
    deberta-jax recipe mnli/deberta-v3-large --model v3-large --output runs/mnli

A recipe is `finetune` with other defaults; every option of it can be given. Settings: `experiments` of
microsoft/DeBERTa, one script a task and model; it has none for SQuAD, and its RACE does not run (an import is missing).
Scores: its README, on the development sets, by its authors. Nothing of it was measured here.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import tyro

from deberta_jax.errors import UserError
from deberta_jax.sift import SiftConfig

from . import finetune
from .configs import FinetuneConfig, OptimizerConfig, RegularizationConfig, TaskDataConfig

_V1 = ("deberta-base", "deberta-large", "deberta-xlarge")
_V2 = ("deberta-v2-xlarge", "deberta-v2-xxlarge")
_MODELS = (*_V1, *_V2, "deberta-v3-large")


@dataclasses.dataclass(frozen=True)
class _Task:
    source: str
    max_length: int
    # epochs / warmup steps (below 1: share) / learning rate / batch / dropout of the classifier; None: not published
    settings: Mapping[str, str | None]
    from_mnli: bool = False  # v1 and v2 start from the model fine-tuned on MNLI
    sift: float = 0.0  # weight of SiFT's loss; deberta-v3-xsmall has 3 for 5


def _by_model(*settings: str | None, **others: str) -> dict[str, str | None]:
    return dict(zip(_MODELS, settings, strict=True)) | {name.replace("_", "-"): one for name, one in others.items()}


TASKS: Mapping[str, _Task] = {
    "mnli": _Task(
        "tfds:glue/mnli",
        256,
        _by_model(
            "3/1000/3e-5/64/.1",
            "3/1000/1e-5/64/.2",
            "3/1000/5e-6/64/.3",
            "3/1000/4e-6/64/.25",
            "3/1000/3e-6/64/.3",
            "2/500/7e-6/64/.3",
            deberta_v3_xsmall="3/1000/4.5e-5/64/.1",
            deberta_v3_small="3/1500/4.5e-5/64/.2",
            deberta_v3_base="3/1000/1.5e-5/64/.1",
        ),
    ),
    "mnli-sift": _Task(  # epochs and learning rates are SiFT's; the rest was not published apart, and is MNLI's
        "tfds:glue/mnli",
        256,
        {
            "deberta-base": "6/1000/1.5e-5/64/.1",
            "deberta-v2-xxlarge": "6/1000/3e-6/64/.3",
            "deberta-v3-xsmall": "10/1000/5e-5/64/.1",
            "deberta-v3-small": "6/1500/3.5e-5/64/.2",
            "deberta-v3-base": "6/1000/1.5e-5/64/.1",
        },
        sift=5.0,
    ),
    "cola": _Task(
        "tfds:glue/cola",
        64,
        _by_model(
            "6/100/2e-5/32/.15",
            "6/100/7e-6/32/.15",
            "8/100/5e-6/32/.2",
            "8/100/3e-6/32/.2",
            "10/100/2.5e-6/32/.2",
            "10/50/5.5e-6/32/.1",
        ),
    ),
    "mrpc": _Task(
        "tfds:glue/mrpc",
        128,
        _by_model(
            "6/50/2e-5/32/.15",
            "6/50/1e-5/32/.15",
            "8/50/7e-6/32/.3",
            "6/50/3.5e-6/32/.2",
            "6/50/2e-6/32/.2",
            "6/50/6e-6/32/.2",
        ),
        from_mnli=True,
    ),
    "qnli": _Task(
        "tfds:glue/qnli",
        512,
        _by_model(
            "4/500/2e-5/32/.15",
            "4/500/1e-5/32/.15",
            "4/500/7e-6/32/.2",
            "4/500/4e-6/64/.2",
            "4/500/3e-6/64/.2",
            "6/200/7e-6/64/.2",
        ),
    ),
    "qqp": _Task(
        "tfds:glue/qqp",
        320,
        _by_model(
            "8/500/2e-5/64/.15",
            "8/500/1e-5/64/.15",
            "8/500/7e-6/64/.2",
            "10/1000/4e-6/64/.2",
            "10/1000/3e-6/64/.2",
            "6/1000/1e-5/64/.2",
        ),
    ),
    "rte": _Task(
        "tfds:glue/rte",
        320,
        _by_model(
            "6/100/2e-5/32/.2",
            "6/50/1e-5/32/.2",
            "6/50/5e-6/48/.2",
            "6/50/4e-6/48/.2",
            "6/50/3e-6/48/.2",
            "6/50/1e-5/32/.3",
        ),
        from_mnli=True,
    ),
    "sst2": _Task(
        "tfds:glue/sst2",
        128,
        _by_model(
            "6/500/2e-5/32/.15",
            "6/500/1e-5/32/.15",
            "6/500/3e-6/32/.2",
            "4/500/4e-6/32/.2",
            "4/500/3e-6/32/.2",
            "8/500/6e-6/32/.1",
        ),
    ),
    "stsb": _Task(
        "tfds:glue/stsb",
        128,
        _by_model(
            "6/100/2e-5/32/.15",
            "4/100/7e-6/32/.15",
            "4/100/7e-6/32/.2",
            "4/100/4e-6/32/.2",
            "4/100/3e-6/32/.2",
            "4/50/7e-6/32/.1",
        ),
        from_mnli=True,
    ),
    "ner": _Task(
        "tfds:conll2003",
        512,
        _by_model(
            "15/.1/2e-5/16/0",
            "15/.1/1e-5/16/0",
            "15/.1/7e-6/16/0",
            "15/.1/4e-6/16/0",
            "15/.1/2.5e-6/16/0",
            "10/10/9e-6/16/0",
        ),
    ),
    "record": _Task(
        "tfds:super_glue/record",
        512,
        _by_model(
            "3/1000/2e-5/64/.3",
            "3/1000/1e-5/64/.3",
            "3/1000/7e-6/64/.3",
            "3/1000/5e-6/64/.15",
            "3/1000/3e-6/64/.15",
            "3/500/7e-6/64/.1",
        ),
    ),
    "copa": _Task(
        "tfds:super_glue/copa",
        136,
        _by_model(
            "3/50/1e-5/32/.1",
            "4/30/5e-6/16/.1",
            "4/30/3e-6/24/.1",
            "4/30/2e-6/24/.1",
            "8/30/1e-6/24/.1",
            None,
        ),
        from_mnli=True,
    ),
    "race": _Task(
        "tfds:race",
        320,
        _by_model(
            "6/100/2e-5/32/.2",
            "6/100/8e-6/32/.2",
            "6/100/7e-6/48/.2",
            "6/100/4e-6/48/.2",
            "6/100/3e-6/48/.2",
            None,
        ),
        from_mnli=True,
    ),
}

# In per cent, as published: MNLI matched / mismatched; MRPC and QQP accuracy (F1); STS-B Pearson (Spearman); ReCoRD
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
    """One task with one model. `config` lacks the folders `model` and `output`, which are the user's."""

    name: str
    config: FinetuneConfig
    text: str  # command, hardware, expected score


def _recipe(task_name: str, model: str, settings: str) -> Recipe:
    task = TASKS[task_name]
    epochs, warmup, learning_rate, batch, dropout = map(float, settings.split("/"))
    start = f"{model}-mnli" if task.from_mnli and model in (*_V1, *_V2) else model
    config = FinetuneConfig(
        output=tyro.MISSING,
        model=tyro.MISSING,
        data=TaskDataConfig(train=task.source, max_length=task.max_length),
        batch_size=int(batch),
        epochs=epochs,
        regularization=RegularizationConfig(classifier_dropout=dropout),
        dtype="bfloat16",
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup=warmup, schedule="warmup_linear"),
    )
    if task.sift:
        config = dataclasses.replace(config, sift=SiftConfig(weight=3.0 if model == "deberta-v3-xsmall" else task.sift))
    score = SCORES.get(model, {}).get(task_name)
    where = "sift/README of microsoft/DeBERTa, model cards" if task.sift else "README of microsoft/DeBERTa"
    name = f"{task_name}/{model}"
    how = f" by SiFT with weight {config.sift.weight:g}" if task.sift else ""
    expected = f"{score} on the development set ({where})" if score else "no published figure"
    begin = ", which its authors had fine-tuned on MNLI before" if start != model else ", as pre-trained"
    paragraphs = (  # empty lines between them, as tyro fills lines
        f"Fine-tunes {model} on {task.source.removeprefix('tfds:')}{how} with the published settings.",
        f"Command: deberta-jax convert microsoft/{start} {start}; "
        f"deberta-jax recipe {name} --model {start} --output runs/{task_name}-{model}",
        f"Starts from {start}{begin}.",
        "Hardware: its authors had 8 V100 with 32 GB (MNLI with deberta-large: 2.5 hours). Not run here; for a TPU "
        "slice `deberta-jax compile-ahead --task finetune` gives an estimate.",
        f"Expected: {expected}. Not measured here.",
    )
    text = "\n\n".join(paragraphs)
    return Recipe(name, config, text)


RECIPES: Mapping[str, Recipe] = {
    f"{task}/{model}": _recipe(task, model, settings)
    for task, one in TASKS.items()
    for model, settings in one.settings.items()
    if settings
}


def main(arguments: Sequence[str]) -> None:
    """`deberta-jax recipe ARGUMENTS`: the list, or a run of `finetune`, which see for errors.

    Raises:
      ValueError: no such recipe; those with like names are told.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return
    name, *options = arguments
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"no recipe {name!r}{hint} `deberta-jax recipe` lists them")
    recipe = RECIPES[name]
    finetune.main(
        tyro.cli(
            FinetuneConfig,
            default=recipe.config,
            description=recipe.text,
            prog=f"deberta-jax recipe {name}",
            args=options,
        )
    )


def listing() -> str:
    """All recipes with what their authors reached."""
    lines = ["usage: deberta-jax recipe NAME --model FOLDER --output FOLDER [OPTIONS]", ""]
    for name in RECIPES:
        task, _, model = name.partition("/")
        lines.append(f"  {name:28} {SCORES.get(model, {}).get(task, '')}".rstrip())
    return "\n".join([*lines, "", "Numbers: published development scores in per cent, not measured here."])
