"""What a fine-tuning run starts from: settings that fit together, the model with the task's head, its checkpoints."""

import dataclasses
from typing import Any

import jax

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .configs import FinetuneConfig
from .tasks.base import Task


def task_config(config: FinetuneConfig, pretrained: DebertaConfig, task: Task) -> DebertaConfig:
    """The model's configuration with the task's classes; one output without names for a regression."""
    changes: dict[str, Any] = {"num_labels": max(1, len(task.label_names)), "label_names": task.label_names}
    if config.regularization.classifier_dropout is not None:
        changes["cls_dropout"] = config.regularization.classifier_dropout
        if pretrained.model_type in ("roberta", "electra"):  # their heads drop out on either side of the dense layer
            changes["pooler_dropout"] = config.regularization.classifier_dropout
    return pretrained.replace(**changes)


def heads_message(weights: dict[str, Any], fresh: dict[str, Any], pretrained: DebertaConfig, task: Task) -> str:
    """Which parts of the head are the model's, and which `checkpoint.start_from` begins anew, and why.

    Args:
      weights: the model's. fresh: those of the task's model, or their shapes.
    """
    shapes = {name: jax.tree.map(lambda leaf: leaf.shape, part) for name, part in weights.items()}
    said = []
    for name, part in sorted(fresh.items()):
        if name == "deberta":
            continue
        if shapes.get(name) == jax.tree.map(lambda leaf: leaf.shape, part):
            names = pretrained.label_names
            others = name == "classifier" and task.label_names and names and names != task.label_names
            said.append(
                f"{name} the model's"
                + (f", whose classes were {', '.join(names)}, now {', '.join(task.label_names)}" if others else "")
            )
        elif name in shapes:
            said.append(f"{name} fresh: the model's is {_sizes(shapes[name])}, the task needs {_sizes(part)}")
        else:
            said.append(f"{name} fresh")
    return "head: " + "; ".join(said)


def _sizes(part: Any) -> str:
    """The shapes of a head's kernels."""
    leaves = jax.tree.leaves(part, is_leaf=lambda leaf: isinstance(leaf, tuple))
    shapes = [leaf if isinstance(leaf, tuple) else leaf.shape for leaf in leaves]
    return ", ".join(" x ".join(map(str, shape)) for shape in shapes if len(shape) > 1)


def check_sizes(config: FinetuneConfig, *, devices: int) -> None:
    """Raises ValueError where a batch does not divide."""
    if config.batch_size % config.accumulation or config.batch_size // config.accumulation % devices:
        raise UserError(
            f"batch_size {config.batch_size} does not divide into {config.accumulation} chunks (accumulation) over "
            f"{devices} devices; give a multiple of {config.accumulation * devices}"
        )


def check_settings(config: FinetuneConfig, model: DebertaConfig, task: Task) -> None:
    """Raises ValueError where settings do not go with the model or the task."""
    frozen = config.regularization.freeze_layers
    if frozen > model.num_hidden_layers:
        raise UserError(f"freeze_layers is {frozen}, but the model has {model.num_hidden_layers} layers")
    by_validation = config.selection.patience or config.selection.select == "best" or config.sweep.several_runs
    if by_validation and "validation" not in task.splits:
        raise UserError("patience, select 'best', seeds and grid go by the validation split; give --validation")


def identity(config: FinetuneConfig, model_config: DebertaConfig, tokenizer: Tokenizer, task: Task) -> dict[str, Any]:
    """Returns the settings that a checkpoint and the run that resumes it must have in common, by their old flat names.

    Keys and values are a format on disk: a change would keep runs from resuming.
    """
    columns, spans, regularization = config.data.columns, config.spans, config.regularization
    return {
        "configuration": model_config.to_json(),
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
        "optimizer": dataclasses.asdict(config.optimizer),
        "label_smoothing": regularization.label_smoothing,
        "layer_decay": regularization.layer_decay,
        "freeze_layers": regularization.freeze_layers,
        "select": config.selection.select,
        "patience": config.selection.patience,
        "sift": dataclasses.asdict(config.sift),
        "dtype": config.dtype,
        "seed": config.seed,
    }
