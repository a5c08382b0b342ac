"""From the settings of a fine-tuning run to its model, and the checks that settings, model and task fit together."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deberta_jax.checkpoint import load_pretrained
from deberta_jax.checksums import tree_digest
from deberta_jax.config import DebertaConfig, ProblemType
from deberta_jax.errors import UserError
from deberta_jax.parameter_check import check_finite
from deberta_jax.terminal import quote_names
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.xlnet import NO_SIFT

from .checkpoints.manifest import DIGESTS, join_names
from .configs import FinetuneConfig
from .engine.optimizer import optimizer_identity
from .hosts.processes import gather_json
from .model_folders import model_folder, tokenizer_folder
from .new_tokens import check_vocabulary, with_new_rows, with_new_tokens
from .settings import LARGEST_INT
from .tasks.base import Objective, Task
from .tasks.classification.task import Classification
from .tasks.digest import examples_digest, tokens_digest
from .tasks.multilabel.task import Multilabel
from .tasks.rewards.task import Reward
from .tasks.sources.classes import NO_HEAD, Head, match_names


class Base(NamedTuple):
    """The model that a run starts from.

    Attributes:
      config: its configuration.
      weights: its parameters, with embeddings of the added tokens.
      tokenizer: the tokenizer, with the added tokens.
      added: number of added tokens.
    """

    config: DebertaConfig
    weights: dict[str, Any]
    tokenizer: Tokenizer
    added: int


def open_base(config: FinetuneConfig, mesh: Mesh) -> Base:
    """Reads the model that a run starts from, on a mesh, and its tokenizer.

    Raises:
      UserError: as `model_folder`, `load_pretrained`, `Tokenizer.from_folder`, `check_finite` and `with_new_tokens`.
    """
    folder = model_folder(Path(config.model))
    plain = Tokenizer.from_folder(tokenizer_folder(Path(config.tokenizer)) if config.tokenizer else folder)
    pretrained, weights = load_pretrained(folder, mesh=mesh)
    check_finite(weights, where=str(config.model))
    tokenizer = with_new_tokens(config.new_tokens, plain)
    grown = with_new_rows(config.new_tokens, plain, {"model": (pretrained, weights)})["model"]
    return Base(*grown, tokenizer, tokenizer.vocab_size - plain.vocab_size)


def task_config(config: FinetuneConfig, pretrained: DebertaConfig, task: Task) -> DebertaConfig:
    """Returns the model's configuration with the classes of the task (one output without a name for a regression).

    What the logits of the model to start from meant is not kept: a model of classes has one softmax, unless they are
    those of a multi-label classification.
    """
    changes: dict[str, Any] = {
        "num_labels": max(1, len(task.label_names)),
        "label_names": task.label_names,
        "problem_type": _problem_type(task.objective),
    }
    dropout = config.regularization.classifier_dropout
    if dropout is not None:
        changes["cls_dropout"] = dropout
        if pretrained.model_type in ("roberta", "electra"):  # their heads have dropout before and after the dense layer
            changes["pooler_dropout"] = dropout
    return pretrained.replace(**changes)


def _problem_type(objective: Objective) -> ProblemType | None:
    """Returns what the logits mean; None for what transformers does without one (see `DebertaConfig.problem_type`)."""
    match objective:
        case Classification(regression=True) | Reward():
            return "regression"
        case Multilabel():
            return "multi_label_classification"
        case _:
            return None


def model_head(config: FinetuneConfig, pretrained: DebertaConfig, weights: dict[str, Any]) -> Head:
    """Returns the classifier that a run may start from, with the names of its classes."""
    if config.random_weights or "classifier" not in weights:
        return NO_HEAD
    size = int(weights["classifier"]["bias"].shape[0])
    return Head(size, pretrained.label_names if len(pretrained.label_names) == size else ())


def reorder_classifier(weights: dict[str, Any], pretrained: DebertaConfig, task: Task) -> dict[str, Any]:
    """Returns the pretrained weights with the rows of the classifier in the order of the task's classes.

    A classifier that lacks a class of the task is left out. One whose classes have no names stays as it is.
    """
    positions = _pretrained_positions(weights, pretrained, task)
    if positions is None or positions == list(range(len(pretrained.label_names))):
        return weights
    others = {name: part for name, part in weights.items() if name != "classifier"}
    if None in positions:
        return others
    rows = np.array(positions)
    return {**others, "classifier": jax.tree.map(lambda leaf: leaf[..., rows], weights["classifier"])}


def _pretrained_positions(weights: dict[str, Any], pretrained: DebertaConfig, task: Task) -> list[int | None] | None:
    """Returns the row of the classifier for each class of the task; `None` if either has no names."""
    names = pretrained.label_names
    if "classifier" not in weights or not names or not task.label_names:
        return None
    if weights["classifier"]["bias"].shape != (len(names),):  # the names are those of another head
        return None
    found = match_names(task.label_names, names)
    # Classes that differ only in case cannot be the same row.
    taken = Counter(found[name] for name in task.label_names if name in found)
    exact = set(names)
    return [
        found[name] if name in found and (name in exact or taken[found[name]] == 1) else None
        for name in task.label_names
    ]


def heads_message(weights: dict[str, Any] | None, fresh: dict[str, Any], pretrained: DebertaConfig, task: Task) -> str:
    """Returns which parts of the head a run takes from the model, which are random, and why.

    Args:
      weights: the parameters of the model to start from; None if all are random.
      fresh: parameters of the task's model, or their shapes.
      pretrained: the configuration of the model to start from.
      task: the task.
    """
    if weights is None:
        return "all weights random"
    shapes = {name: jax.tree.map(lambda leaf: leaf.shape, part) for name, part in weights.items()}
    names, old = task.label_names, pretrained.label_names
    parts = []  # of the message, one per part of the head
    for name, part in sorted(fresh.items()):
        if name == "deberta":
            continue
        positions = _pretrained_positions(weights, pretrained, task) if name == "classifier" else None
        if positions is not None and None in positions:
            new = [label for label, position in zip(names, positions, strict=True) if position is None]
            hint = ", whose numbers they are if --labels gives these names" if all(map(str.isdecimal, new)) else ""
            parts.append(f"{name} random: {quote_names(new)} not among the model's classes {quote_names(old)}{hint}")
        elif positions is not None and positions != list(range(len(old))):
            parts.append(
                f"{name} from the model, its rows in the order {quote_names(names)} instead of {quote_names(old)}"
            )
        elif shapes.get(name) == jax.tree.map(lambda leaf: leaf.shape, part):
            unnamed = name == "classifier" and names and not old
            parts.append(
                f"{name} from the model"
                + (f", whose classes have no names, now {quote_names(names)}" if unnamed else "")
            )
        elif name in shapes:
            parts.append(f"{name} random: the model's is {_sizes(shapes[name])}, the task needs {_sizes(part)}")
        else:
            parts.append(f"{name} random")
    return "head: " + "; ".join(parts)


def _sizes(part: Any) -> str:
    """Returns the shapes of a head's kernels as text."""
    leaves = jax.tree.leaves(part, is_leaf=lambda leaf: isinstance(leaf, tuple))
    shapes = [leaf if isinstance(leaf, tuple) else leaf.shape for leaf in leaves]
    return ", ".join(" x ".join(map(str, shape)) for shape in shapes if len(shape) > 1)


def check_settings(config: FinetuneConfig, model: DebertaConfig, task: Task, tokenizer: Tokenizer) -> None:
    """Raises UserError if settings, model, task and tokenizer do not fit together."""
    frozen = config.regularization.freeze_layers
    if frozen > model.num_hidden_layers:
        raise UserError(f"freeze_layers is {frozen}, but the model has {model.num_hidden_layers} layers")
    if model.reads_positions() and config.data.max_length > model.max_tokens:
        raise UserError(f"max_length is {config.data.max_length}, but the model has positions for {model.max_tokens}")
    selection = config.selection
    needs_validation = selection.patience or selection.select == "best" or config.sweep.several_runs or selection.metric
    if needs_validation and "validation" not in task.splits:
        raise UserError("patience, select 'best', metric, seeds and grid need the validation split; give --validation")
    if tokenizer.cls_last != model.classifies_last_token:
        places = {True: "at the end, as in XLNet", False: "at the beginning"}
        raise UserError(
            f"the tokenizer puts [CLS] {places[tokenizer.cls_last]}, but the model, a {model.model_type}, reads it "
            f"{places[model.classifies_last_token]}; give the tokenizer that the model was trained with"
        )
    if config.sift.weight and model.model_type == "xlnet":
        raise UserError(NO_SIFT)
    check_vocabulary(tokenizer, model)


def count_steps(config: FinetuneConfig, epoch: int) -> int:
    """Returns the number of optimizer steps of a run.

    Args:
      config: the settings of the run.
      epoch: the number of steps of an epoch.

    Raises:
      UserError: if the steps of all epochs are more than JAX counts.
    """
    if config.steps is not None:
        return config.steps
    steps = epoch * config.epochs
    if steps > LARGEST_INT:
        raise UserError(
            f"epochs is {config.epochs:g}, which are {steps:.3g} steps of {config.batch_size} examples; "
            f"at most {LARGEST_INT} are possible"
        )
    return math.ceil(steps)


def input_digests(config: FinetuneConfig, task: Task, weights: dict[str, Any]) -> dict[str, str]:
    """Returns digests of what the training reads, by names for messages: files may change under the same path.

    The validation examples are included if they decide which model is the result. Collective: all processes call it.

    Args:
      config: the settings of the run.
      task: the task.
      weights: the parameters of the model to start from.

    Raises:
      UserError: if the hosts have read different examples.
    """
    splits = ["train"]
    if config.selection.select == "best" or config.selection.patience:
        splits.append("validation")
    names = {"train": "training examples", "validation": "validation examples"}
    digests = {names[split]: examples_digest(task.examples[split]) for split in splits}
    digests["tokenization"] = tokens_digest(task.splits["train"])
    everywhere = gather_json(digests)
    if different := [name for name in digests if len({of_host[name] for of_host in everywhere}) > 1]:
        raise UserError(f"the hosts have read different {join_names(different)}; give all hosts the same files")
    if not config.random_weights:
        digests["weights of the model"] = tree_digest(weights)
    return digests


def identity(
    config: FinetuneConfig, model_config: DebertaConfig, tokenizer: Tokenizer, task: Task, digests: dict[str, str]
) -> dict[str, Any]:
    """Returns the settings and digests that a checkpoint and the run that resumes it must have in common.

    Keys and values are a format on disk: a change would keep interrupted runs from resuming. `checkpoints.restore`
    accepts a checkpoint without digests.

    Args:
      config: the settings of the run.
      model_config: the configuration of the task's model.
      tokenizer: the tokenizer.
      task: the task.
      digests: from `input_digests`.
    """
    # Checkpoints of earlier versions have no problem_type, which the kind of the task and its classes decide.
    configuration = {name: value for name, value in model_config.to_json().items() if name != "problem_type"}
    columns, spans, regularization = config.data.columns, config.spans, config.regularization
    return {
        "configuration": configuration,
        "tokenizer": tokenizer.fingerprint,
        "examples": len(task.splits["train"].lengths),
        "model": str(config.model),
        "random_weights": config.random_weights,
        "train": config.data.train,
        "kind": config.data.kind,
        "text_column": columns.text_column,
        "pair_column": columns.pair_column,
        "choices_columns": list(columns.choices_columns),
        "label_column": columns.label_column,
        "start_column": columns.start_column,
        "max_length": config.data.max_length,
        "max_question_length": spans.max_question_length,
        "doc_stride": spans.doc_stride,
        "max_answer_length": spans.max_answer_length,
        "group_by_length": config.data.group_by_length,
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "epochs": config.epochs,
        "steps": config.steps,
        "optimizer": optimizer_identity(config.optimizer),
        "label_smoothing": regularization.label_smoothing,
        "layer_decay": regularization.layer_decay,
        "freeze_layers": regularization.freeze_layers,
        "select": config.selection.select,
        "patience": config.selection.patience,
        "sift": dataclasses.asdict(config.sift),
        "dtype": config.dtype,
        "seed": config.seed,
        **_newer_settings(config),
        DIGESTS: digests,
    }


def _newer_settings(config: FinetuneConfig) -> dict[str, Any]:
    """Returns the settings of `identity` that earlier versions did not have, where they are not the default."""
    settings = {
        "class_weights": list(config.loss.class_weights) or None,
        "focal_gamma": config.loss.focal_gamma or None,
        "lora": dataclasses.asdict(config.lora) if config.lora.rank else None,
    }
    if config.selection.select == "best" or config.selection.patience:  # which these decide about
        settings |= {
            "metric": config.selection.metric,
            "threshold": config.multilabel.threshold,
            "per_class_thresholds": config.multilabel.per_class_thresholds or None,
        }
    return {name: value for name, value in settings.items() if value is not None}
