"""Rows of a model's tables for tokens that were added to its vocabulary."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .config import DebertaConfig
from .sharding import parameter_path
from .tokenizers.tokenizer import Tokenizer

_TABLES = re.compile(r"(^|/)(word_embeddings/(embedding|delta)|mlm_head/bias)$")
_MULTIPLE = 64  # of the rows of a table that grows, so that it can be sharded and fills the tiles of a TPU


@dataclasses.dataclass(frozen=True)
class NewRows:
    """The rows that begin at `first`, one for each token that was added.

    Attributes:
      first: id of the first token; the ids below are those of the tokenizer before.
      pieces: the ids that each token had before, without unknown ones; none for a string without pieces.
    """

    first: int
    pieces: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, contents: Sequence[str]) -> "NewRows":
        """Returns the rows for strings that are added to a tokenizer."""
        ids = tokenizer.encode_batch(list(contents)) if contents else []
        known = (tuple(piece for piece in row if piece != tokenizer.unk_id) for row in ids)
        return cls(tokenizer.vocab_size, tuple(known))


class GrownModel(NamedTuple):
    """A model whose tables have rows for new tokens."""

    config: DebertaConfig
    params: dict[str, Any]


def add_rows(config: DebertaConfig, params: dict[str, Any], rows: NewRows) -> GrownModel:
    """Returns a model with embeddings for new tokens.

    Each is the mean of the embeddings of the pieces that stood for the string before, because the model has read the
    string as these pieces until now; or the mean of all embeddings, if there are none. The bias of the masked LM head
    is treated alike. Spare rows of the tables are used first, which a released DeBERTa-v3 has; a table that is too
    small grows to a multiple of 64.

    Args:
      config: The configuration of the model.
      params: Its parameters, also sharded.
      rows: The new rows.
    """
    needed = rows.first + len(rows.pieces)
    size = config.vocab_size if needed <= config.vocab_size else -(-needed // _MULTIPLE) * _MULTIPLE
    longest = max([1, *map(len, rows.pieces)])
    ids = np.zeros((len(rows.pieces), longest), np.int32)
    weights = np.zeros(ids.shape, np.float32)
    for row, pieces in enumerate(rows.pieces):
        ids[row, : len(pieces)] = pieces
        weights[row, : len(pieces)] = 1 / max(1, len(pieces))

    def grow(path: tuple[Any, ...], leaf: Any) -> Any:
        return _grow(leaf, ids, weights, rows.first, size) if _TABLES.search(parameter_path(path)) else leaf

    return GrownModel(config.replace(vocab_size=size), jax.tree.map_with_path(grow, params))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _grow(
    table: Float[Array, "V *size"],
    ids: Any,
    weights: Any,
    first: int,
    size: int,
) -> Float[Array, "rows *size"]:
    """Returns a table with `size` rows; those from `first` on are weighted sums of the rows `ids`, or the mean row."""
    flat = table.reshape(len(table), -1)
    sums = jnp.einsum("np,npd->nd", weights, flat[ids])
    sums = jnp.where(weights.sum(axis=1, keepdims=True) > 0, sums, flat[:first].mean(axis=0))
    grown = jnp.concatenate([flat, jnp.zeros((size - len(flat), flat.shape[1]), flat.dtype)])
    return grown.at[first + jnp.arange(len(ids))].set(sums).reshape(size, *table.shape[1:])
