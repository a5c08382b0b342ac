"""Loads the task of a run, of any kind."""

import dataclasses
from collections import Counter
from typing import get_args

from deberta_jax.errors import UserError
from deberta_jax.terminal import quote_names
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..configs import FinetuneConfig
from ..task_configs import Kind, MultilabelConfig
from .base import Task
from .choices import task as choices
from .classification import ranking
from .classification import task as classification
from .multilabel import task as multilabel
from .rewards import task as reward
from .sources.classes import NO_HEAD, Head
from .sources.source import Source
from .spans import task as spans
from .tokens import task as token_labels

WITH_CLASSES = ("classification", "multilabel", "tokens")


def load_task(config: FinetuneConfig, tokenizer: Tokenizer, head: Head = NO_HEAD) -> Task:
    """Reads and tokenizes the examples of config.data.train, .validation and .test.

    Args:
      config: the settings of the run.
      tokenizer: the tokenizer of the model.
      head: the classifier of the model to start from, whose classes come first (default: there is none).

    Raises:
      MissingFileError: if there is no such file.
      UserError: if a source cannot be read or used, or is of another kind.
    """
    known = Source.parse(config.data.train).published
    kind: Kind = config.data.kind or (known.kind if known else "classification")
    if known and kind != known.kind:
        raise UserError(f"{config.data.train} is a task of kind '{known.kind}'; leave kind out, or set it to that")
    _check_labels(config.data.labels, kind)
    _check_options(config, kind)
    match kind:
        case "classification" | "regression":
            return classification.load(config, tokenizer, kind=kind, head=head)
        case "multilabel" | "tokens":
            return (multilabel if kind == "multilabel" else token_labels).load(config, tokenizer, head=head)
        case "ranking" | "reward" | "choice" | "span":
            module = {"ranking": ranking, "reward": reward, "choice": choices, "span": spans}[kind]
            return module.load(config, tokenizer)
        case _:
            raise UserError(f"kind is {kind!r}; it must be one of {', '.join(get_args(Kind))}")


def _check_options(config: FinetuneConfig, kind: Kind) -> None:
    """Raises UserError for settings that have no effect on the kind of the task."""
    if kind not in WITH_CLASSES:
        if config.loss.class_weights:
            raise UserError(f"class_weights are given for kind {kind!r}, which has no classes; leave them out")
        if config.loss.focal_gamma and kind != "ranking":
            raise UserError(f"focal_gamma is given for kind {kind!r}, whose loss has no probabilities of classes")
    if kind != "multilabel":
        given, defaults = (dataclasses.asdict(group) for group in (config.multilabel, MultilabelConfig()))
        for name in (name for name in given if given[name] != defaults[name]):
            raise UserError(f"{name} is given for kind {kind!r}; it is a setting of multilabel")


def _check_labels(labels: tuple[str, ...], kind: Kind) -> None:
    """Raises UserError if the list of classes that the user gave cannot be used."""
    if not labels:
        return
    if kind not in WITH_CLASSES:
        raise UserError(
            f"labels are given for kind {kind!r}; they name the classes of classification and of multilabel and tokens"
        )
    if len(labels) < 2 or not all(name.strip() for name in labels):
        raise UserError(f"labels are {quote_names(labels)}; give at least two names, none of them blank")
    if repeated := sorted(name for name, count in Counter(labels).items() if count > 1):
        raise UserError(f"labels name {quote_names(repeated)} twice; give every class once")
