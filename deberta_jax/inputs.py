"""The call arguments that every model takes, and where they place the tokens."""

from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from .encoder import TokenLayout
from .errors import UserError

# Multiple choice has an axis for the choices, *C.
TokenIds = Int[Array | np.ndarray, "B *C S"]
TokenMask = Shaped[Array | np.ndarray, "B *C S"]


class EncoderOptions(TypedDict, total=False):
    """Call arguments that every model passes on to its encoder; `Deberta` describes them."""

    segment_ids: TokenIds | None
    token_type_ids: TokenIds | None
    position_ids: TokenIds | None
    output_hidden_states: bool
    output_attentions: bool


def segment_starts(segment_ids: Int[Array | np.ndarray, "B S"]) -> Int[Array, "B S"]:
    """Returns the position of the first token of each token's segment."""
    index = jnp.arange(segment_ids.shape[1])
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def locate_tokens(
    input_ids: Array | np.ndarray,
    attention_mask: Array | np.ndarray | None,
    segment_ids: Array | np.ndarray | None,
    position_ids: Array | np.ndarray | None,
    *,
    position_offset: int = 0,
) -> TokenLayout:
    """Returns the segment and the absolute position of every token.

    Args:
      input_ids, attention_mask, segment_ids, position_ids: as for `Deberta`, all [B, S].
      position_offset: if positive (RoBERTa), only real tokens are counted, from this number on; otherwise positions
        are those in the row, from 0 on.

    Raises:
      ValueError: shapes that do not match, or both attention_mask and segment_ids.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids has shape {input_ids.shape}; it must be [batch, sequence]")
    if attention_mask is not None and segment_ids is not None:
        raise ValueError("give attention_mask or segment_ids, not both: segment_ids already mark padding with 0")
    for name, array in (
        ("attention_mask", attention_mask),
        ("segment_ids", segment_ids),
        ("position_ids", position_ids),
    ):
        if array is not None and array.shape != input_ids.shape:
            raise ValueError(f"{name} has shape {array.shape}; it must be that of input_ids, {input_ids.shape}")
    index = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    if segment_ids is not None:
        segments, positions = jnp.asarray(segment_ids), index - segment_starts(segment_ids)
    else:
        real = True if attention_mask is None else attention_mask != 0
        segments = jnp.broadcast_to(jnp.asarray(real, jnp.int32), input_ids.shape)
        positions = jnp.cumsum(segments, axis=1) - 1 if position_offset else index
    positions = positions + position_offset if position_ids is None else jnp.asarray(position_ids)
    return TokenLayout(segments, positions)


def check_ids(name: str, ids: Array | np.ndarray, rows: int, real: Array | np.ndarray | None) -> None:
    """Raises if an id of a real token is outside its table. Arrays that JAX traces are not checked.

    Args:
      name: of the argument, for the message.
      ids: [B, S].
      rows: number of rows of the table.
      real: [B, S], nonzero for real tokens (default: all are real).

    Raises:
      UserError: the message has the first such id and its place.
    """
    arrays = [array for array in (ids, real) if isinstance(array, jax.Array)]
    if any(isinstance(array, Tracer) or not array.is_fully_addressable for array in arrays):
        return
    values = np.asarray(ids)
    outside = (values < 0) | (values >= rows)
    if real is not None:
        outside &= np.asarray(real) != 0
    if outside.any():
        row, token = map(int, np.argwhere(outside)[0])
        raise UserError(
            f"{name} has {values[row, token]} at [{row}, {token}], but its table has the rows 0 to {rows - 1}; give "
            "ids of the tokenizer that the model was trained with, and no more tokens than the table has positions"
        )


def clip_padding(
    ids: Int[Array | np.ndarray, "B S"], rows: int, segments: Int[Array | np.ndarray, "B S"]
) -> Int[Array, "B S"]:
    """Moves ids of padding into the table: an id outside it reads NaN, which masked attention would not stop."""
    return jnp.where(segments == 0, jnp.clip(ids, 0, rows - 1), ids)
