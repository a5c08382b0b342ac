"""What one tile adds to the gradients.

The scores are computed again from the inputs, and the weights from the scores and the saved log-sum-exp. With P the
dropped weights, dP = dO V^T, and D the sum of O * dO over a query's lanes, the gradient of the scores is
dS = weights * (dP - D), where dP is masked and scaled like P; each of the three terms of the scores then passes dS on
to its two factors.

The gradients and the operands of their products are stored as [head size, tokens]: such products load few weights into
the matrix unit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Float32, Int32

from .operands import BackwardRefs, Ref
from .plan import LANES, KernelPlan
from .scores import (
    ChunkIndex,
    block_scores,
    head_with_codes,
    slab_terms,
    table_bases,
    table_products,
    turn_c2p,
    visible_pairs,
)
from .tiles import block_slice, head_salt, keep_block, only_head, pack, product, unpack, unskew, window_slice


class Tile(NamedTuple):
    """One pair of a query and a key chunk, and what its heads share."""

    query_chunk: ChunkIndex
    key_chunk: ChunkIndex
    visible: list[Bool[Array, "128 C"] | None]
    query: Float[Array, "128 C"]  # all four transposed: [lanes, tokens]
    key: Float[Array, "128 C"]
    context: Float[Array, "128 C"]
    d_context: Float[Array, "128 C"]


class TileGradients(NamedTuple):
    """What one tile adds to the gradients of its queries, keys and values, transposed."""

    query: Float32[Array, "lanes C"]
    key: Float32[Array, "lanes C"]
    value: Float32[Array, "lanes C"]


class TableWindow(NamedTuple):
    """A transposed table and its gradient, [128, 2S] both, and the first column that the tile reads."""

    table: Ref
    gradient: Ref
    base: ChunkIndex


class TileHead(NamedTuple):
    """What the slabs of one head of a tile share.

    Attributes:
      number: index of the head within the grid step.
      key, query: of this head alone, with the segment codes in the other lanes.
      mean: D, the sum of O * dO over the lanes, which equals the mean of dP under the softmax.
      salt: salt of the dropout mask.
      c2p_base, p2c_base: see `table_bases`.
      c2p: the c2p term, int32 [C, 128 per slab] (see `turn_c2p`); None without the term.
      p2c_products: the p2c products by offset, not yet skewed, float32 [C, C + 128]; None without the term.
    """

    number: int
    key: Float[Array, "C 128"]
    query: Float[Array, "C 128"]
    mean: Float32[Array, "1 C"]
    salt: Int32[Array, ""]
    c2p_base: ChunkIndex
    p2c_base: ChunkIndex
    c2p: Ref | None
    p2c_products: Ref | None


class SlabGradients(NamedTuple):
    """Gradients of the scores and of the values of a slab.

    Attributes:
      d_scores: dS, [128 keys, C queries] for each block of the slab.
      narrow: the same blocks on top of each other, in the dtype of the inputs.
      d_value: [head size, 128 keys per block].
    """

    d_scores: list[Float32[Array, "128 C"]]
    narrow: Float[Array, "keys C"]
    d_value: Float32[Array, "H keys"]


def tile_gradients(
    plan: KernelPlan, refs: BackwardRefs, query_chunk: ChunkIndex, key_chunk: ChunkIndex
) -> TileGradients:
    """Gradients [128, C] of a tile's queries, keys and values, all heads together; adds to the tables' gradients."""
    inputs = refs.inputs
    visible = visible_pairs(plan, inputs.shared)
    transposed = (x[0].T for x in (inputs.shared.query, inputs.shared.key, inputs.context, inputs.d_context))
    tile = Tile(query_chunk, key_chunk, visible, *transposed)
    parts = [_head_gradients(plan, refs, tile, head) for head in range(plan.heads)]
    d_query, d_key, d_value = (jnp.concatenate(x, axis=0) for x in zip(*parts, strict=True))
    return TileGradients(d_query * plan.scale, d_key * plan.scale, d_value)


def _head_gradients(plan: KernelPlan, refs: BackwardRefs, tile: Tile, number: int) -> TileGradients:
    """Gradients [head size, C] of one head, before the scale; adds to the tables' gradients."""
    inputs, outputs, scratch, lanes = refs.inputs, refs.outputs, refs.scratch, plan.lanes(number)
    query_t, key_t = tile.query[lanes], tile.key[lanes]
    head = _prepare_head(plan, refs, tile, number)
    d_query_t = jnp.zeros((plan.head_size, plan.chunk), jnp.float32)
    d_keys: dict[int, jax.Array] = {}
    d_values: dict[int, jax.Array] = {}
    for slab in plan.slabs:
        d_scores, narrow, d_value = _slab_gradients(plan, refs, tile, head, slab)
        d_key = product(query_t, narrow, 1, 1)
        d_query_t += product(key_t[:, block_slice(slab[0], len(slab))], narrow, 1, 0)
        for n, block in enumerate(slab):
            d_keys[block], d_values[block] = d_key[:, block_slice(n)], d_value[:, block_slice(n)]
            if plan.c2p:
                scratch.d_scores[:, block_slice(block)] = narrow[block_slice(n)].T
        if plan.p2c:
            window = TableWindow(inputs.query_table_transposed, outputs.query_table, head.p2c_base)
            for block, added in _through_table(plan, slab, d_scores, key_t, window, lanes).items():
                d_keys[block] += added
    if plan.c2p:
        # The rows of the c2p products are queries: their gradient starts when the scores of all keys are known.
        window, d_queries = TableWindow(inputs.key_table_transposed, outputs.key_table, head.c2p_base), {}
        for slab in plan.slabs:
            d_scores = [scratch.d_scores[block_slice(block)].astype(jnp.float32) for block in slab]
            d_queries |= _through_table(plan, slab, d_scores, query_t, window, lanes)
        d_query_t += _side_by_side(plan, d_queries)
    return TileGradients(d_query_t, _side_by_side(plan, d_keys), _side_by_side(plan, d_values))


def _prepare_head(plan: KernelPlan, refs: BackwardRefs, tile: Tile, number: int) -> TileHead:
    """Writes the c2p term and the p2c products of a head into scratch memory, valid until the next head.

    Returns these and everything else that the slabs of the head share.
    """
    inputs, scratch, lanes = refs.inputs.shared, refs.scratch, plan.lanes(number)
    mean = tile.context[lanes].astype(jnp.float32) * tile.d_context[lanes].astype(jnp.float32)
    mean = jnp.sum(mean, axis=0, keepdims=True)
    key, query = head_with_codes(plan, inputs, number)
    c2p_base, p2c_base = table_bases(plan, tile.query_chunk, tile.key_chunk)
    if plan.c2p:
        x = only_head(plan, inputs.query[0], number)
        table_products(plan, x, inputs.key_table, c2p_base, scratch.c2p_products)
        turn_c2p(plan, scratch.c2p_products, scratch.c2p)
    if plan.p2c:
        x = only_head(plan, inputs.key[0], number)
        table_products(plan, x, inputs.query_table, p2c_base, scratch.p2c_products)
    salt = head_salt(plan, refs.origin, pl.program_id(1), number)
    return TileHead(number, key, query, mean, salt, c2p_base, p2c_base, scratch.c2p, scratch.p2c_products)


def _slab_gradients(
    plan: KernelPlan, refs: BackwardRefs, tile: Tile, head: TileHead, slab: tuple[int, ...]
) -> SlabGradients:
    """Recomputes the weights of a slab and passes the gradient of the context on to its scores and values."""
    inputs, dtype = refs.inputs, refs.inputs.shared.query.dtype
    terms = slab_terms(plan, slab, head.key, head.query, head.p2c_products)
    value = inputs.shared.value[0][block_slice(slab[0], len(slab))]
    d_weights = product(value, only_head(plan, inputs.d_context[0], head.number), 1, 1)
    weights, d_scores = [], []
    for n, block in enumerate(slab):
        scores = block_scores(plan, block, terms[block], head.c2p, tile.visible[block])
        weight, d_weight = jnp.exp2(scores - inputs.lse[0, head.number]), d_weights[block_slice(n)]
        dropped = weight
        keep = keep_block(plan, head.salt, block, tile.query_chunk, tile.key_chunk)
        if keep is not None:
            d_weight = jnp.where(keep, d_weight * (1 / plan.kept_share), 0)
            dropped = jnp.where(keep, weight * (1 / plan.kept_share), 0)
        weights.append(dropped.astype(dtype))
        d_scores.append(weight * (d_weight - head.mean))
    narrow = jnp.concatenate([x.astype(dtype) for x in d_scores], axis=0)
    d_value = product(tile.d_context[plan.lanes(head.number)], jnp.concatenate(weights, axis=0), 1, 1)
    return SlabGradients(d_scores, narrow, d_value)


def _through_table(
    plan: KernelPlan,
    slab: tuple[int, ...],
    d_scores: list[Float32[Array, "128 C"]],
    x_t: Float[Array, "H C"],
    window: TableWindow,
    lanes: slice,
) -> dict[int, Float32[Array, "H 128"]]:
    """Backward through x . table for the blocks of a slab: adds to the table's gradient, returns that of each block.

    Args:
      slab: blocks of x.
      d_scores: gradient of the scores for each block; rows are the block's tokens.
      x_t: queries (c2p) or keys (p2c) of the head, transposed.
      window: of the table.
      lanes: of the head.
    """
    by_offset, d_blocks = unskew(plan, pack(plan, d_scores)), {}
    for block in slab:
        columns = window_slice(window.base, plan.chunk - (block + 1) * LANES, plan.chunk + LANES)
        offsets = unpack(by_offset, slab, block).astype(x_t.dtype)
        window.gradient[lanes, columns] += product(x_t[:, block_slice(block)], offsets, 1, 0)
        d_blocks[block] = product(window.table[lanes, columns], offsets, 1, 1)
    return d_blocks


def _side_by_side(plan: KernelPlan, blocks: dict[int, Float32[Array, "H 128"]]) -> Float32[Array, "H C"]:
    return jnp.concatenate([blocks[block] for block in range(plan.blocks)], axis=1)
