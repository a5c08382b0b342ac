"""Disentangled attention in plain XLA, one block of scores at a time.

The scores are much larger than everything else in a layer. They are computed in blocks of some heads, sequences and
queries, and once more in the backward pass. What is kept for it are queries, keys, values and tables, so memory grows
linearly with the length. On a CPU a block fits into the caches, which makes attention 2 to 3 times as fast; on an
accelerator a block is as large as memory allows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jaxtyping import Array, Bool, Float, Int, Shaped

from .attention_inputs import AttentionInputs
from .position_scores import content_to_position, position_to_content, product
from .random import Part, dropout

First = tuple[Int[Array, ""] | int, Int[Array, ""] | int, Int[Array, ""] | int]

_MASKED = -1e30  # below every real score: its exponential is exactly 0


class BlockSizes(NamedTuple):
    """Numbers of heads, sequences and queries whose scores exist at the same time."""

    heads: int
    sequences: int
    queries: int


@flax.struct.dataclass
class _Operands:
    """What the scores and the context of some heads, sequences and queries are computed from.

    Attributes:
      first: numbers of the first head, sequence and query in the whole batch.
    """

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S N H"]
    value: Float[Array, "B S N H"]
    pos_key: Float[Array, "P N H"] | None
    pos_query: Float[Array, "P N H"] | None
    query_segments: Int[Array | np.ndarray, "B T"]
    key_segments: Int[Array | np.ndarray, "B S"]
    query_positions: Int[Array | np.ndarray, "B T"] | None
    first: First

    @classmethod
    def of(
        cls,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S N H"],
        value: Float[Array, "B S N H"],
        inputs: AttentionInputs,
        first: First = (0, 0, 0),
    ) -> Self:
        """Returns the operands of arguments of attention."""
        return cls(
            query=query,
            key=key,
            value=value,
            pos_key=inputs.pos_key,
            pos_query=inputs.pos_query,
            query_segments=inputs.query_segments,
            key_segments=inputs.key_segments,
            query_positions=inputs.query_positions,
            first=first,
        )


# The axes of heads, sequences and queries of queries and contexts, and of each operand.
_QUERY_AXES = 2, 0, 1
_AXES: dict[str, tuple[int | None, int | None, int | None]] = {
    "query": _QUERY_AXES,
    "key": (2, 0, None),
    "value": (2, 0, None),
    "pos_key": (1, None, None),
    "pos_query": (1, None, None),
    "query_segments": (None, 0, 1),
    "key_segments": (None, 0, None),
    "query_positions": (None, 0, 1),
}


@functools.partial(jax.jit, static_argnames=("sizes", "sequences"), inline=True)
def attention_context(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    *,
    sizes: BlockSizes,
    first_sequence: Int[Array, ""] | int = 0,
    first_head: Int[Array, ""] | int = 0,
    sequences: int | None = None,
) -> Float[Array, "B T N H"]:
    """Returns the context, in value's dtype and exactly zero for padding queries.

    Compiled, also where the caller is not: a loop that is not compiled is compiled anew with every call.

    Args:
      query: projected queries.
      key: projected keys.
      value: projected values.
      inputs: segments, position terms and dropout.
      sizes: see `block_sizes`.
      first_sequence, first_head: numbers of the first sequence and head over all devices, for the dropout mask.
      sequences: number of sequences over all devices (default: those of the arguments).
    """
    operands = _Operands.of(query, key, value, inputs, first=(first_head, first_sequence, 0))
    batch, length, heads, _ = query.shape
    whole = (heads, batch if sequences is None else sequences, length, key.shape[1])
    is_whole = sizes == (heads, batch, length)
    # The barriers of `prevent_cse` keep XLA from merging the two computations; a loop is such a barrier.
    attend = jax.checkpoint(
        lambda operands: _attend(operands, inputs, whole, has_all_queries=sizes.queries == length),
        prevent_cse=is_whole,
    )
    return _in_blocks(attend, operands, sizes)


def attention_probabilities(
    query: Float[Array, "B T N H"], key: Float[Array, "B S N H"], inputs: AttentionInputs
) -> Float[Array, "B N T S"]:
    """Returns the probabilities before dropout, float32 and zero for padding queries (official XSoftmax)."""
    weights, normalizer = _weights(_Operands.of(query, key, key, inputs), inputs, has_all_queries=True)
    return (weights * normalizer).swapaxes(0, 1)


def block_sizes(heads: Any, sequences: Any, queries: Any, keys: Any, device_kind: str) -> BlockSizes:
    """Returns the sizes of blocks that are fast on a device.

    A block is the whole batch if one of the numbers is a variable of `jax.export`.

    Args:
      heads, sequences, queries, keys: sizes of the scores on one device.
      device_kind: kind of the device, such as `cpu`.
    """
    if any(map(is_symbolic_dim, (heads, sequences, queries, keys))):
        return BlockSizes(heads, sequences, queries)
    pairs = queries * keys
    if device_kind != "cpu":
        limit = 2**25  # scores: 128 MiB
        size = _even(heads, limit // (sequences * pairs))
        # The kernels do long rows on a TPU; a part of the queries would be gathered there.
        splits_queries = "TPU" not in device_kind and size == 1
        return BlockSizes(size, sequences, _even(queries, limit // (sequences * keys)) if splits_queries else queries)
    # Measured on two cores with 1 MiB of L2 each. One head at a time is fastest, unless that is very little work.
    limit = 2**18  # scores: 1 MiB
    if heads * sequences * pairs <= 2 * limit:
        return BlockSizes(heads, sequences, queries)
    if heads * pairs <= limit // 2:
        return BlockSizes(heads, _even(sequences, limit // (heads * pairs)), queries)
    return BlockSizes(1, _even(sequences, limit // pairs), _even(queries, max(limit // keys, 128)))


def _even(number: int, limit: int) -> int:
    """Returns the size of the fewest equal parts of at most `limit` (or 1); the last part may be shorter."""
    parts = -(-number // max(limit, 1))
    return -(-number // parts)


# ---------------------------------------------------------------- blocks


def _in_blocks(
    attend: Callable[[_Operands], Float[Array, "B T N H"]], operands: _Operands, sizes: BlockSizes, level: int = 0
) -> Float[Array, "B T N H"]:
    """Runs `attend` block by block: level 0 is a loop over heads, 1 in it over sequences, 2 in that over queries."""
    if level == len(sizes):
        return attend(operands)
    axis, size = _QUERY_AXES[level], sizes[level]
    length = operands.query.shape[axis]
    if size == length:
        return _in_blocks(attend, operands, sizes, level + 1)
    count = -(-length // size)
    parts: dict[str, Any] = {
        name: _split(array, split_axis, count, size)
        for name, axes in _AXES.items()
        if (split_axis := axes[level]) is not None and (array := getattr(operands, name)) is not None
    }
    starts = operands.first[level] + size * jnp.arange(count)

    def attend_part(part: tuple[dict[str, Any], Int[Array, ""]]) -> Float[Array, "B T N H"]:
        arrays, start = part
        first = (*operands.first[:level], start, *operands.first[level + 1 :])
        return _in_blocks(attend, operands.replace(**arrays, first=first), sizes, level + 1)  # type: ignore[attr-defined]

    context = jnp.moveaxis(jax.lax.map(attend_part, (parts, starts)), 0, axis)
    joined = context.reshape(*context.shape[:axis], count * size, *context.shape[axis + 2 :])
    return jax.lax.slice_in_dim(joined, 0, length, axis=axis)


def _split(x: Shaped[Array | np.ndarray, "..."], axis: int, count: int, size: int) -> Shaped[Array, "count ..."]:
    """Splits an axis into parts along a new first axis. Zeros fill the last part; a segment of 0 is padding."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - x.shape[axis])
    parts = jnp.pad(x, padding).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0)


def _attend(
    operands: _Operands, inputs: AttentionInputs, whole: tuple[int, int, int, int], *, has_all_queries: bool
) -> Float[Array, "B T N H"]:
    """Returns the context of a block; `whole` is the shape of all scores over all devices."""
    weights, normalizer = _weights(operands, inputs, has_all_queries=has_all_queries)
    if inputs.dropout_key is not None and inputs.dropout_rate > 0:
        part = Part((*operands.first, 0), whole)
        weights = dropout(weights, rate=inputs.dropout_rate, key=inputs.dropout_key, part=part)
    value = _heads_first(operands.value)
    # The division by the sum follows the product with the values, which is smaller.
    context = product("nbts,nbsh->nbth", weights.astype(value.dtype), value) * normalizer
    return context.astype(value.dtype).transpose(1, 2, 0, 3)


def _weights(
    operands: _Operands, inputs: AttentionInputs, *, has_all_queries: bool
) -> tuple[Float[Array, "N B T S"], Float[Array, "N B T 1"]]:
    """Returns the exponentials of the scores, and what makes them probabilities: 1 / sum, or 0 for padding queries."""
    scale = (operands.query.shape[-1] * (1 + inputs.position_terms)) ** -0.5
    query, key = _heads_first(operands.query), _heads_first(operands.key)
    # Sums and softmax are one expression: XLA then compiles products, softmax and the last product into one pass.
    scores = product("nbth,nbsh->nbts", query, key)
    if inputs.position_terms:
        assert inputs.live_rows is not None, "live_rows are needed with pos_key or pos_query"
        positions = operands.query_positions
        if not has_all_queries and positions is None:
            positions = operands.first[2] + jnp.arange(query.shape[2])
        if operands.pos_key is not None:
            table = operands.pos_key.transpose(1, 0, 2)
            scores += content_to_position(query, table, inputs.live_rows, positions)
        if operands.pos_query is not None:
            table = operands.pos_query.transpose(1, 0, 2)
            scores += position_to_content(key, table, inputs.live_rows, positions)
    visible = _visible(operands.query_segments, operands.key_segments)
    scores = scores * scale + jnp.where(visible, 0.0, _MASKED)[None]
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return weights, (operands.query_segments != 0)[None, :, :, None] / weights.sum(axis=-1, keepdims=True)


def _visible(
    query_segments: Int[Array | np.ndarray, "B T"], key_segments: Int[Array | np.ndarray, "B S"]
) -> Bool[Array | np.ndarray, "B T S"]:
    return (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments != 0)[:, None, :]


def _heads_first(x: Float[Array, "B S N H"]) -> Float[Array, "N B S H"]:
    return x.transpose(2, 0, 1, 3)
