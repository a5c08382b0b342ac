"""Loads the task of a run, of any kind."""

from deberta_jax.errors import UserError
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
    if config.data.labels and kind not in ("classification", "tokens"):
        raise UserError(f"labels are given for kind {kind!r}; they name the classes of classification and of tokens")
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
