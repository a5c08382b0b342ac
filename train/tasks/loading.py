"""Loads the task of a run, of any kind."""

from collections import Counter

from deberta_jax.errors import UserError
from deberta_jax.terminal import quote_names
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..configs import FinetuneConfig
from .base import Kind, Task
from .choices import task as choices
from .classification import task as classification
from .sources.classes import NO_HEAD, Head
from .sources.source import Source
from .spans import task as spans
from .tokens import task as token_labels


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
    match kind:
        case "classification" | "regression":
            return classification.load(config, tokenizer, kind=kind, head=head)
        case "choice":
            return choices.load(config, tokenizer)
        case "tokens":
            return token_labels.load(config, tokenizer, head=head)
        case "span":
            return spans.load(config, tokenizer)
        case _:
            raise UserError(f"kind is {kind!r}; it must be classification, regression, choice, tokens or span")


def _check_labels(labels: tuple[str, ...], kind: Kind) -> None:
    """Raises UserError if the list of classes that the user gave cannot be used."""
    if not labels:
        return
    if kind not in ("classification", "tokens"):
        raise UserError(f"labels are given for kind {kind!r}; they name the classes of classification and of tokens")
    if len(labels) < 2 or not all(name.strip() for name in labels):
        raise UserError(f"labels are {quote_names(labels)}; give at least two names, none of them blank")
    if repeated := sorted(name for name, count in Counter(labels).items() if count > 1):
        raise UserError(f"labels name {quote_names(repeated)} twice; give every class once")
