"""Tokens that a run adds to the vocabulary of the model that it starts from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deberta_jax.errors import MissingFileError, UserError, one_line
from deberta_jax.terminal import list_names
from deberta_jax.tokenizers.extend import extend_tokenizer
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .task_configs import NewTokensConfig

if TYPE_CHECKING:
    from deberta_jax.config import DebertaConfig
    from deberta_jax.new_rows import GrownModel


def read_new_tokens(config: NewTokensConfig) -> tuple[str, ...]:
    """Returns the strings of both settings: those of the command line, then the lines of the file but blank ones.

    Raises:
      MissingFileError: there is no such file.
      UserError: it is not UTF-8, or has no line.
    """
    path = config.add_tokens_file
    if path is None:
        return config.add_tokens
    if not path.is_file():
        raise MissingFileError(f"add_tokens_file {path}: no such file")
    try:
        lines = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"add_tokens_file {path} is not UTF-8: {one_line(error)}") from None
    if not lines:
        raise UserError(f"add_tokens_file {path} has no tokens; write one on each line")
    return (*config.add_tokens, *lines)


def with_new_tokens(config: NewTokensConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer with the tokens that the settings add, or as it is. Raises as `extend_tokenizer`."""
    contents = read_new_tokens(config)
    return extend_tokenizer(tokenizer, contents) if contents else tokenizer


def with_new_rows(
    config: NewTokensConfig, tokenizer: Tokenizer, models: Mapping[str, tuple[Any, dict[str, Any]]]
) -> "dict[str, GrownModel]":
    """Returns models with embeddings for the tokens that the settings add.

    Args:
      config: the settings.
      tokenizer: the tokenizer without these tokens.
      models: the configuration and the parameters of each model.

    Raises:
      UserError: the tokenizer has more pieces than a model.
    """
    from deberta_jax.new_rows import GrownModel, NewRows, add_rows  # here, because `prepare` does not need JAX

    contents = read_new_tokens(config)
    if not contents:
        return {name: GrownModel(*model) for name, model in models.items()}
    for model_config, _ in models.values():
        check_vocabulary(tokenizer, model_config)
    rows = NewRows.of(tokenizer, contents)
    return {name: add_rows(*model, rows) for name, model in models.items()}


def check_vocabulary(tokenizer: Tokenizer, model: "DebertaConfig") -> None:
    """Raises UserError if a tokenizer has more pieces than a model has rows for."""
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, more than the model's vocab_size {model.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )


def new_tokens_message(tokenizer: Tokenizer, added: int, vocab_size: int) -> str:
    """Returns which tokens were added to a tokenizer that has them, and where."""
    ids = range(tokenizer.vocab_size - added, tokenizer.vocab_size)
    tokens = [f"{piece!r} {i}" for piece, i in zip(tokenizer.pieces(ids), ids, strict=True)]
    return f"tokens added: {list_names(tokens)}; the table of embeddings has {vocab_size} rows"
