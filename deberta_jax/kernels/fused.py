"""Fused disentangled attention as a differentiable function: layout, padding, tables by offset, the kernels' VJP."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from ..attention_inputs import AttentionInputs
from ..positions import LiveRows
from .backward import backward
from .forward import forward
from .forward_128 import forward_128
from .operands import ChunkSegments, ForwardOutputs, KeptProbabilities, KernelInputs
from .plan import LANES, KernelPlan
from .scores import segment_codes, table_bases


class TableRows(NamedTuple):
    """Row of the relative table for each row t of an expanded table: distance S - t in c2p, t - S in p2c."""

    c2p: Int[Array | np.ndarray, "offsets"]
    p2c: Int[Array | np.ndarray, "offsets"]


class Indices(NamedTuple):
    """The integer operands, which have no gradients.

    Attributes:
      origin: see `tiles.head_salt`.
      query_segments, key_segments: see `KernelInputs`.
      table_rows: None without position terms.
    """

    origin: Int32[Array, "3"]
    query_segments: Int32[Array, "B 1 S"]
    key_segments: Int32[Array, "B 1 S"]
    table_rows: TableRows | None


class Projections(NamedTuple):
    """The operands that have gradients, padded and with heads side by side; a table is None without its term."""

    query: Float[Array, "B S W"]
    key: Float[Array, "B S W"]
    value: Float[Array, "B S W"]
    pos_key: Float[Array, "P W"] | None
    pos_query: Float[Array, "P W"] | None


def fused_attention(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    *,
    device_kind: str,
    keep_probabilities: bool = False,
    first_sequence: Int[Array, ""] | int = 0,
    first_head: Int[Array, ""] | int = 0,
) -> Float[Array, "B S N H"]:
    """Returns the context of `attention.disentangled_attention`, for queries at their own positions.

    The dropout mask depends on the dropout key and on the numbers of sequence, head, query and key.

    Args:
      query, key, value: of a length, head size and dtype that `plan.unsupported` does not exclude.
      inputs: without query_positions.
      device_kind: the kind of TPU that will run the kernels, as JAX names it; any other kind means interpret mode.
      keep_probabilities: keeps the probabilities for the backward pass instead of computing them again, which takes
        `plan.kept_bytes` of memory. Ignored for sequences that are several tiles.
      first_sequence, first_head: numbers of the first sequence and head on the whole mesh, for the dropout mask.

    Returns:
      The context in query's dtype, exactly zero for padding queries.
    """
    batch, length, heads, size = query.shape
    plan = KernelPlan.create(
        length=length,
        head_size=size,
        dtype=query.dtype,
        device_kind=device_kind,
        c2p=inputs.pos_key is not None,
        p2c=inputs.pos_query is not None,
        dropout_rate=0.0 if inputs.dropout_key is None else inputs.dropout_rate,
        keep_probabilities=keep_probabilities,
    )
    seed = jnp.zeros((), jnp.uint32)
    if inputs.dropout_key is not None:
        seed = jax.random.bits(inputs.dropout_key, (), jnp.uint32)
    seed = jax.lax.bitcast_convert_type(seed, jnp.int32)
    table_rows = None
    if inputs.position_terms:
        assert isinstance(inputs.live_rows, LiveRows), "live_rows are needed with pos_key or pos_query"
        table_rows = rows_by_offset(inputs.live_rows, plan.length)
        plan = dataclasses.replace(plan, far=first_far(plan, table_rows))
    indices = Indices(
        origin=jnp.stack([seed, jnp.asarray(first_sequence, jnp.int32), jnp.asarray(first_head, jnp.int32)]),
        # Padding must not see padding, so it is another segment among the keys.
        query_segments=_pad_segments(plan, inputs.query_segments, padding=0),
        key_segments=_pad_segments(plan, inputs.key_segments, padding=-1),
        table_rows=table_rows,
    )
    projections = Projections(
        *(_merge_heads(plan, x, length=plan.length) for x in (query, key, value)),
        *(None if table is None else _merge_heads(plan, table) for table in (inputs.pos_key, inputs.pos_query)),
    )
    context: jax.Array = _attention(plan, indices, projections)  # type: ignore[assignment]
    return context[:, :length].reshape(batch, length, -1, plan.head_size)[:, :, :heads, :size]


def _merge_heads(
    plan: KernelPlan, x: Float[Array, "*rows N H"], length: int | None = None
) -> Float[Array, "*padded W"]:
    """Puts heads side by side, after padding the head size, the heads to fill 128 lanes, and axis 1 to `length`."""
    padding = [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % plan.heads), (0, plan.head_size - x.shape[-1])]
    if length is not None:
        padding[1] = (0, length - x.shape[1])
    x = jnp.pad(x, padding) if any(after for _, after in padding) else x
    return x.reshape(*x.shape[:-2], -1)


def _pad_segments(
    plan: KernelPlan, segments: Int[Array | np.ndarray, "B tokens"], *, padding: int
) -> Int32[Array, "B 1 S"]:
    """Pads to the plan's length and replaces the 0 of padding."""
    segments = jnp.pad(segments.astype(jnp.int32), ((0, 0), (0, plan.length - segments.shape[1])))
    return jnp.where(segments == 0, padding, segments)[:, None]


def rows_by_offset(live: LiveRows, length: int) -> TableRows:
    """Returns the rows of the expanded tables, for sequences that are padded to `length`.

    Distances that no two tokens have repeat the first or last row; no score that counts reads them.
    """
    row_of_distance = live.row_of_distance
    middle, last = live.length - 1, len(row_of_distance) - 1
    distance = length - np.arange(2 * length)
    c2p, p2c = middle - distance, middle + distance
    return TableRows(row_of_distance[np.clip(c2p, 0, last)], row_of_distance[np.clip(p2c, 0, last)])


def first_far(plan: KernelPlan, rows: TableRows) -> int:
    """Returns `KernelPlan.far`: the distance, in chunks, from which on a tile reads one row of the relative table."""

    def reads_one_row(chunks: int) -> bool:
        windows = (table[base + 1 : base + 2 * plan.chunk] for base in table_bases(plan, chunks, 0) for table in rows)
        return all((window == window[0]).all() for window in windows)

    furthest_first = range(plan.chunks - 1, 0, -1)
    return plan.chunks - len(list(itertools.takewhile(reads_one_row, furthest_first)))


# ---------------------------------------------------------------- the kernels and their VJP


class Residuals(NamedTuple):
    """What the forward pass saves for the backward pass; `kept` is None if the plan does not keep probabilities."""

    indices: Indices
    projections: Projections
    context: Float[Array, "B S W"]
    lse: Float[Array, "B heads 1 S"]
    kept: KeptProbabilities[jax.Array] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: KernelPlan, indices: Indices, projections: Projections) -> Float[Array, "B S W"]:
    # Called where there is no backward pass.
    return _attention_forward(dataclasses.replace(plan, keeps=False), indices, projections)[0]


def _attention_forward(
    plan: KernelPlan, indices: Indices, projections: Projections
) -> tuple[Float[Array, "B S W"], Residuals]:
    inputs = _kernel_inputs(plan, indices, projections)
    if plan.length == LANES:
        out = forward_128(plan, indices.origin, inputs)
    else:
        out = forward(plan, indices.origin, _chunk_segments(plan, indices), inputs)
    return out.context, Residuals(indices, projections, *out)


def _attention_backward(
    plan: KernelPlan, residuals: Residuals, d_context: Float[Array, "B S W"]
) -> tuple[None, Projections]:
    indices, projections = residuals.indices, residuals.projections
    inputs = _kernel_inputs(plan, indices, projections)
    segments = _chunk_segments(plan, indices)
    forward_outputs = ForwardOutputs(residuals.context, residuals.lse, residuals.kept)
    gradients = backward(plan, indices.origin, segments, inputs, forward_outputs, d_context)
    d_pos_key = d_pos_query = None
    if indices.table_rows is not None:
        d_pos_key = _sum_offsets(plan, gradients.key_table, projections.pos_key, indices.table_rows.c2p)
        d_pos_query = _sum_offsets(plan, gradients.query_table, projections.pos_query, indices.table_rows.p2c)
    return None, Projections(gradients.query, gradients.key, gradients.value, d_pos_key, d_pos_query)


_attention.defvjp(_attention_forward, _attention_backward)


def _sum_offsets(
    plan: KernelPlan,
    gradient: Float[Array, "W offsets"] | None,
    table: Float[Array, "P W"] | None,
    rows: Int[Array | np.ndarray, "offsets"],
) -> Float[Array, "P W"] | None:
    """Turns an expanded table's gradient into the table's: sums the distances that share a row, in float32.

    A product with a one-hot matrix: a scatter-add would add row after row on a TPU.
    """
    if gradient is None or table is None:
        return None
    one_hot = jax.nn.one_hot(rows, table.shape[0], dtype=jnp.float32)
    summed = jnp.einsum("tp,wt->pw", one_hot, gradient, precision=jax.lax.Precision.HIGHEST)
    return (summed * plan.scale).astype(table.dtype)


def _kernel_inputs(plan: KernelPlan, indices: Indices, projections: Projections) -> KernelInputs[jax.Array]:
    query_code = key_code = key_table = query_table = None
    if plan.heads > 1:
        query_code, key_code = segment_codes(indices.query_segments, indices.key_segments, projections.query.dtype)
    if indices.table_rows is not None:
        c2p, p2c = indices.table_rows
        key_table = None if projections.pos_key is None else projections.pos_key[c2p]
        query_table = None if projections.pos_query is None else projections.pos_query[p2c]
    return KernelInputs(
        key=projections.key,
        key_code=key_code,
        key_segments=indices.key_segments,
        key_table=key_table,
        query=projections.query,
        query_code=query_code,
        query_segments=indices.query_segments,
        query_table=query_table,
        value=projections.value,
    )


def _chunk_segments(plan: KernelPlan, indices: Indices) -> ChunkSegments:
    """Returns the lowest and highest segment of each chunk of queries, padding aside.

    A chunk of padding alone has a lowest segment above every highest, so that no chunk overlaps with it.
    """
    segments = indices.query_segments.reshape(-1, plan.chunk)
    highest = jnp.iinfo(jnp.int32).max
    return ChunkSegments(jnp.where(segments == 0, highest, segments).min(axis=1), segments.max(axis=1))
