"""What the kernels read and write, as tuples whose fields are arrays, block specifications or references.

`pallas_call` takes pytrees. So a kernel's arguments, their `BlockSpec`s and the references that its body gets are the
same tuple with other leaves: `KernelInputs[jax.Array]`, `KernelInputs[pl.BlockSpec]`, `KernelInputs[Ref]`. An operand
that a call does not have is None in all three.
"""

from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int32

from .plan import LANES, KernelPlan

Leaf = TypeVar("Leaf")
Ref = Any  # a Pallas reference to memory of the kernel, or a view of one: `ref[...]` loads and `ref[...] = x` stores


class ChunkSegments(NamedTuple):
    """Lowest and highest segment of each chunk, to skip tiles: entry sequence * chunks + chunk.

    Prefetched into scalar memory, as the grid step branches on them. See `fused.py`.
    """

    lowest: Int32[Array, "chunks"]
    highest: Int32[Array, "chunks"]


class KernelInputs(NamedTuple, Generic[Leaf]):
    """What every kernel reads. W is the number of heads times the head size, a multiple of 128.

    The order of the fields is the order of a kernel's operands, which moves the compiler's schedule by up to 2 %:
    price the kernels before and after a change of it.

    Attributes:
      key, query, value: [B, S, W].
      key_code, query_code: [B, S, 128], the mask in the idle lanes, see `scores.segment_codes`; None where one head
        fills all 128 lanes.
      key_segments, query_segments: int32 [B, 1, S]; padding is -1 among the keys and 0 among the queries, so that it
        sees nothing.
      key_table: [2S, W], row t is pos_key of distance S - t; None without the c2p term.
      query_table: [2S, W], row t is pos_query of distance t - S; None without the p2c term.
    """

    key: Leaf
    key_code: Leaf | None
    key_segments: Leaf
    key_table: Leaf | None
    query: Leaf
    query_code: Leaf | None
    query_segments: Leaf
    query_table: Leaf | None
    value: Leaf


def tile_specs(plan: KernelPlan, *, query_axis: int, key_axis: int, **table_options: Any) -> KernelInputs[pl.BlockSpec]:
    """Returns the blocks that one tile reads. Axis 0 of the grid is the group of heads, axis 1 the sequence.

    Args:
      plan: the plan of the call.
      query_axis, key_axis: axes of the grid that count the query chunks and the key chunks.
      table_options: further arguments of the tables' BlockSpecs.
    """

    def tokens(axis: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, plan.chunk, LANES), lambda *grid: (grid[1], grid[axis], grid[0]))

    def code(axis: int) -> pl.BlockSpec | None:
        if plan.heads == 1:
            return None
        return pl.BlockSpec((1, plan.chunk, LANES), lambda *grid: (grid[1], grid[axis], 0))

    def segments(axis: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, plan.chunk), lambda *grid: (grid[1], 0, grid[axis]))

    table = pl.BlockSpec((2 * plan.length, LANES), lambda *grid: (0, grid[0]), **table_options)
    return KernelInputs(
        key=tokens(key_axis),
        key_code=code(key_axis),
        key_segments=segments(key_axis),
        key_table=table if plan.c2p else None,
        query=tokens(query_axis),
        query_code=code(query_axis),
        query_segments=segments(query_axis),
        query_table=table if plan.p2c else None,
        value=tokens(key_axis),
    )


class ForwardInputs(NamedTuple, Generic[Leaf]):
    """Inputs of the forward kernel. next_query: the query of the next sequence, where the kernel prefetches for it."""

    shared: KernelInputs[Leaf]
    next_query: Leaf | None


class KeptProbabilities(NamedTuple, Generic[Leaf]):
    """The probabilities, before they are divided by their sum, that the forward kernel leaves to the backward kernel.

    Attributes:
      weights: [B, W / head size, S keys, S queries] in the dtype of the inputs: 2^(score - maximum), with a negative
        sign where dropout drops it.
      maxima: float32 [B, W / head size, blocks, S queries], the maximum that the weights of a block of keys refer to:
        the largest score up to this block, in the order of the plan's slabs.
    """

    weights: Leaf
    maxima: Leaf


def kept_specs(plan: KernelPlan, sequences: int = 1) -> KeptProbabilities[pl.BlockSpec] | None:
    """Returns the blocks of `sequences` sequences; axis 0 of the grid is the group of heads, axis 1 the sequences."""
    if not plan.keeps:
        return None
    return KeptProbabilities(
        *(
            pl.BlockSpec((sequences, plan.heads, rows, plan.length), lambda group, step, *_: (step, group, 0, 0))
            for rows in (plan.length, plan.blocks)
        )
    )


def kept_shapes(plan: KernelPlan, query: jax.Array) -> KeptProbabilities[jax.ShapeDtypeStruct] | None:
    """Returns the shapes for a query of shape [B, S, W]."""
    if not plan.keeps:
        return None
    batch, length, width = query.shape
    heads = width // plan.head_size
    return KeptProbabilities(
        jax.ShapeDtypeStruct((batch, heads, length, length), query.dtype),
        jax.ShapeDtypeStruct((batch, heads, plan.blocks, length), jnp.float32),
    )


class ForwardOutputs(NamedTuple, Generic[Leaf]):
    """What the forward kernel writes.

    Attributes:
      context: [B, S, W].
      lse: float32 [B, W / head size, 1, S], logarithm to base 2 of the sum of 2^score.
      kept: the probabilities, or None if the plan does not keep them.
    """

    context: Leaf
    lse: Leaf
    kept: KeptProbabilities[Leaf] | None


class ForwardScratch(NamedTuple):
    """VMEM that outlives a grid step.

    Attributes:
      c2p_products: float32 [C, C + 128], c2p by offset, of one head at a time.
      p2c_products: float32 [heads, C, C + 128], p2c by offset.
      c2p: int32 [heads, C, 128 per slab], what `turn_c2p` writes.
      maximum, total, context: the state of the softmax between the key chunks of one query chunk, see `SoftmaxState`;
        None where a sequence is one chunk.
    """

    c2p_products: Any
    p2c_products: Any
    c2p: Any
    maximum: Any
    total: Any
    context: Any


class ForwardRefs(NamedTuple):
    """Everything that the body of the kernel reads and writes."""

    origin: Ref
    chunk_segments: ChunkSegments
    inputs: ForwardInputs[Ref]
    outputs: ForwardOutputs[Ref]
    scratch: ForwardScratch


class BackwardInputs(NamedTuple, Generic[Leaf]):
    """Inputs of the backward kernel.

    Attributes:
      context: [B, S, W], the forward's result.
      d_context: [B, S, W], its cotangent.
      shared: what the forward kernel read; without tables and codes where the probabilities are kept.
      kept: the probabilities, or None if the plan does not keep them.
      lse: float32 [B, W / head size, 1, S], the forward's logarithm to base 2 of the sum of 2^score.
      key_table_transposed, query_table_transposed: [W, 2S]; None without the term.
    """

    context: Leaf
    d_context: Leaf
    shared: KernelInputs[Leaf]
    kept: KeptProbabilities[Leaf] | None
    lse: Leaf
    key_table_transposed: Leaf | None
    query_table_transposed: Leaf | None


class Gradients(NamedTuple, Generic[Leaf]):
    """Outputs of the backward kernel: gradients.

    Attributes:
      query, key, value: [B, S, W].
      key_table, query_table: float32 [W, 2S], by offset and before the scale; None without the term.
    """

    query: Leaf
    key: Leaf
    value: Leaf
    key_table: Leaf | None
    query_table: Leaf | None


class BackwardScratch(NamedTuple):
    """VMEM of the kernel; None where it is not needed.

    Attributes:
      c2p_products, p2c_products: float32 [C, C + 128], by offset, of one head at a time.
      c2p: int32 [C, 128 per slab], what `turn_c2p` writes.
      d_scores: int32 [heads, 128 queries per slab, C keys], the query blocks of a slab packed, for the c2p term, whose
        rows are queries.
      d_query: float32 [128, S], summed over the key chunks: the innermost grid axis runs over the query chunks.
      d_key, d_value: float32 [128, C], summed over the query chunks.
    """

    c2p_products: Any
    p2c_products: Any
    c2p: Any
    d_scores: Any
    d_query: Any
    d_key: Any
    d_value: Any


class BackwardRefs(NamedTuple):
    """Everything that the body of the kernel reads and writes."""

    origin: Ref
    chunk_segments: ChunkSegments
    inputs: BackwardInputs[Ref]
    outputs: Gradients[Ref]
    scratch: BackwardScratch
