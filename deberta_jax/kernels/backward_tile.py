"""What one tile adds to the gradients.

With P the dropped weights, dP = dO V^T, and D the sum of O * dO over a query's lanes, the gradient of the scores is
dS = weights * (dP - D), where dP is masked and scaled like P; each of the three terms of the scores then passes dS on
to its two factors.

The weights are those that the forward kernel kept, if the plan says so. Otherwise the scores are computed again from
the inputs, and the weights from the scores and the saved log-sum-exp.

The gradients and the operands of their products are stored as [head size, tokens]: such products load few weights into
the matrix unit.
"""

import functools
import operator
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
    far_head,
    far_query,
    far_window,
    head_with_codes,
    slab_terms,
    table_bases,
    table_products,
    turn_c2p,
    visible_pairs,
)
from .tiles import block_slice, head_salt, keep_block, only_head, pack, product, unpack, unskew, window_slice


class Tile(NamedTuple):
    """One pair of a query and a key chunk, far from each other or not (see `KernelPlan`), and what its heads share."""

    query_chunk: ChunkIndex
    key_chunk: ChunkIndex
    far: bool
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
      mean: D, the sum of O * dO over the lanes, which equals the mean of dP under the softmax.
      c2p_base, p2c_base: see `table_bases`.
    """

    number: int
    mean: Float32[Array, "1 C"]
    c2p_base: ChunkIndex
    p2c_base: ChunkIndex


class ScoreParts(NamedTuple):
    """What the scores of one head of a tile are computed from.

    Attributes:
      key, query: of this head alone, with the segment codes in the other lanes.
      salt: salt of the dropout mask.
      c2p: the c2p term, what `turn_c2p` wrote; None without the term.
      p2c_products: the p2c products by offset, what `table_products` wrote; None without the term.
      far_c2p: the c2p term of a far tile, see `scores.FarHead`; None in other tiles.
    """

    key: Float[Array, "C 128"]
    query: Float[Array, "C 128"]
    salt: Int32[Array, ""]
    c2p: Ref | None
    p2c_products: Ref | None
    far_c2p: Float[Array, "1 C"] | None


class SlabWeights(NamedTuple):
    """The weights of a slab, and the gradient of its scores.

    Attributes:
      d_scores: dS, [128 keys, C queries] for each block of the slab.
      weights: P for each block, in the dtype of the inputs. Of kept weights, P is this times a factor for each query.
      d_context: dO of this head, transposed, times that factor.
    """

    d_scores: list[Float32[Array, "128 C"]]
    weights: list[Float[Array, "128 C"]]
    d_context: Float[Array, "H C"]


def tile_gradients(
    plan: KernelPlan, refs: BackwardRefs, query_chunk: ChunkIndex, key_chunk: ChunkIndex, *, far: bool
) -> TileGradients:
    """Gradients [128, C] of a tile's queries, keys and values, all heads together; adds to the tables' gradients."""
    inputs = refs.inputs
    visible = visible_pairs(plan, inputs.shared)
    transposed = (x[0].T for x in (inputs.shared.query, inputs.shared.key, inputs.context, inputs.d_context))
    tile = Tile(query_chunk, key_chunk, far, visible, *transposed)
    parts = [_head_gradients(plan, refs, tile, head) for head in range(plan.heads)]
    d_query, d_key, d_value = (jnp.concatenate(x, axis=0) for x in zip(*parts, strict=True))
    return TileGradients(d_query * plan.scale, d_key * plan.scale, d_value)


def _head_gradients(plan: KernelPlan, refs: BackwardRefs, tile: Tile, number: int) -> TileGradients:
    """Gradients [head size, C] of one head, before the scale; adds to the tables' gradients."""
    lanes = plan.lanes(number)
    query_t, key_t, dtype = tile.query[lanes], tile.key[lanes], tile.query.dtype
    mean = jnp.sum(
        tile.context[lanes].astype(jnp.float32) * tile.d_context[lanes].astype(jnp.float32), axis=0, keepdims=True
    )
    head = TileHead(number, mean, *table_bases(plan, tile.query_chunk, tile.key_chunk))
    parts = None if plan.keeps else _score_parts(plan, refs, tile, head)
    d_query_t = jnp.zeros((plan.head_size, plan.chunk), jnp.float32)
    d_keys: dict[int, jax.Array] = {}
    d_values: dict[int, jax.Array] = {}
    of_blocks: list[jax.Array] = []  # dS of each block of keys
    p2c = TableWindow(refs.inputs.query_table_transposed, refs.outputs.query_table, head.p2c_base)
    factor_of_keys = query_t
    if plan.p2c and tile.far:
        row = p2c.table[lanes, far_window(p2c.base)]
        factor_of_keys = far_query(query_t, jnp.concatenate([row] * plan.blocks, axis=1))
    for slab in plan.slabs:
        if parts is None:
            d_scores, weights, d_context_t = _kept_weights(plan, refs, tile, head, slab)
        else:
            d_scores, weights, d_context_t = _recomputed_weights(plan, refs, tile, head, parts, slab)
        d_value = product(d_context_t, jnp.concatenate(weights, axis=0), 1, 1)
        narrow = jnp.concatenate([x.astype(dtype) for x in d_scores], axis=0)
        d_key = product(factor_of_keys, narrow, 1, 1)
        d_query_t += product(key_t[:, block_slice(slab[0], len(slab))], narrow, 1, 0)
        for n, block in enumerate(slab):
            d_keys[block], d_values[block] = d_key[:, block_slice(n)], d_value[:, block_slice(n)]
            if plan.c2p and not tile.far:
                _turn(plan, d_scores[n], refs.scratch.d_scores.at[number, :, block_slice(block)])
        of_blocks += d_scores
        if plan.p2c and not tile.far:
            for block, added in _through_table(plan, slab, pack(plan, d_scores), key_t, p2c, lanes).items():
                d_keys[block] += added
    if plan.p2c and tile.far:  # up to here, the gradient of the queries is that of the row that was added to each
        p2c.gradient[lanes, far_window(p2c.base)] += _sum([d_query_t[:, block_slice(n)] for n in range(plan.blocks)])
    if plan.c2p:
        d_query_t += _c2p_gradient(plan, refs, tile, head, of_blocks)
    return TileGradients(d_query_t, _side_by_side(plan, d_keys), _side_by_side(plan, d_values))


def _turn(plan: KernelPlan, d_scores: Float32[Array, "128 C"], turned: Ref) -> None:
    """Transposes a block of keys, packed, into turned: int32 [128 queries per slab, 128 keys]."""
    for n, slab in enumerate(plan.slabs):
        turned[block_slice(n)] = pack(plan, [d_scores[:, block_slice(block)] for block in slab]).T


def _c2p_gradient(
    plan: KernelPlan, refs: BackwardRefs, tile: Tile, head: TileHead, of_blocks: list[Float32[Array, "128 C"]]
) -> Float32[Array, "H C"]:
    """Passes the gradient of all scores on to the queries, which is returned, and to the table's gradient.

    The rows of the c2p products are queries: their gradient starts when the scores of all keys are known, from what
    `_turn` wrote, and in a far tile from `of_blocks`.
    """
    window = TableWindow(refs.inputs.key_table_transposed, refs.outputs.key_table, head.c2p_base)
    lanes = plan.lanes(head.number)
    query_t, d_queries = tile.query[lanes], {}
    if tile.far:
        d_scores, columns = _sum(of_blocks).astype(query_t.dtype), far_window(window.base)
        # All 128 columns are the same row of the table: any of them may take a part of the gradient.
        window.gradient[lanes, columns] += product(query_t, d_scores, 1, 1)
        return product(window.table[lanes, columns], d_scores, 1, 0)
    for n, slab in enumerate(plan.slabs):
        packed = refs.scratch.d_scores[head.number, block_slice(n)]
        d_queries |= _through_table(plan, slab, packed, query_t, window, lanes)
    return _side_by_side(plan, d_queries)


def _kept_weights(
    plan: KernelPlan, refs: BackwardRefs, tile: Tile, head: TileHead, slab: tuple[int, ...]
) -> SlabWeights:
    """Reads the weights of a slab, and passes the gradient of the context on to its scores.

    The weights refer to a maximum and are not divided by their sum. Both are one factor for each query, which
    multiplies dO and D instead. For that, all weights of a slab must refer to the maximum of its last block.
    """
    inputs, dtype = refs.inputs, tile.query.dtype
    assert inputs.kept is not None
    maxima = {block: inputs.kept.maxima[0, head.number, block : block + 1] for block in slab}
    factor = jnp.exp2(maxima[slab[-1]] - inputs.lse[0, head.number])
    d_context = tile.d_context[plan.lanes(head.number)].astype(jnp.float32) * (factor * (1 / plan.kept_share))
    d_context, mean = d_context.astype(dtype), head.mean * factor
    others = [jnp.zeros_like(d_context)] * plan.heads
    others[head.number] = d_context
    value = inputs.shared.value[0][block_slice(slab[0], len(slab))]
    d_weights = product(value, jnp.concatenate(others, axis=0), 1, 0)
    d_scores, weights = [], []
    for m, block in enumerate(slab):
        narrow = inputs.kept.weights[0, head.number, block_slice(block)]
        signed, d_weight = narrow.astype(jnp.float32), d_weights[block_slice(m)]
        if block != slab[-1]:
            signed *= jnp.exp2(maxima[block] - maxima[slab[-1]])
            narrow = signed.astype(dtype)
        if plan.drop_below:
            # Of a dropped weight, -P is kept and dP is 0: P * (0 - D) = -P * D.
            d_scores.append(signed * jnp.where(signed >= 0, d_weight - mean, mean))
            weights.append(jnp.maximum(signed, 0).astype(dtype))
        else:
            d_scores.append(signed * (d_weight - mean))
            weights.append(narrow)
    return SlabWeights(d_scores, weights, d_context)


def _score_parts(plan: KernelPlan, refs: BackwardRefs, tile: Tile, head: TileHead) -> ScoreParts:
    """Writes the c2p term and the p2c products of a head into scratch memory, valid until the next head."""
    inputs, scratch = refs.inputs.shared, refs.scratch
    salt = head_salt(plan, refs.origin, pl.program_id(1), head.number)
    if tile.far:
        key, query, c2p = far_head(plan, inputs, head.number, tile.query_chunk, tile.key_chunk)
        return ScoreParts(key, query, salt, None, None, c2p)
    key, query = head_with_codes(plan, inputs, head.number)
    if plan.c2p:
        x = only_head(plan, inputs.query[0], head.number)
        table_products(plan, x, inputs.key_table, head.c2p_base, scratch.c2p_products)
        turn_c2p(plan, scratch.c2p_products, scratch.c2p)
    if plan.p2c:
        x = only_head(plan, inputs.key[0], head.number)
        table_products(plan, x, inputs.query_table, head.p2c_base, scratch.p2c_products)
    return ScoreParts(key, query, salt, scratch.c2p, scratch.p2c_products, None)


def _recomputed_weights(
    plan: KernelPlan, refs: BackwardRefs, tile: Tile, head: TileHead, parts: ScoreParts, slab: tuple[int, ...]
) -> SlabWeights:
    """Computes the weights of a slab again, and passes the gradient of the context on to its scores."""
    inputs, dtype = refs.inputs, tile.query.dtype
    terms = slab_terms(plan, slab, parts.key, parts.query, parts.p2c_products)
    value = inputs.shared.value[0][block_slice(slab[0], len(slab))]
    d_weights = product(value, only_head(plan, inputs.d_context[0], head.number), 1, 1)
    lse = inputs.lse[0, head.number]
    if parts.far_c2p is not None:
        lse -= parts.far_c2p
    weights, d_scores = [], []
    for m, block in enumerate(slab):
        scores = block_scores(plan, block, terms[block], parts.c2p, tile.visible[block])
        weight, d_weight = jnp.exp2(scores - lse), d_weights[block_slice(m)]
        dropped = weight
        keep = keep_block(plan, parts.salt, block, tile.query_chunk, tile.key_chunk)
        if keep is not None:
            d_weight = jnp.where(keep, d_weight * (1 / plan.kept_share), 0)
            dropped = jnp.where(keep, weight * (1 / plan.kept_share), 0)
        weights.append(dropped.astype(dtype))
        d_scores.append(weight * (d_weight - head.mean))
    return SlabWeights(d_scores, weights, tile.d_context[plan.lanes(head.number)])


def _through_table(
    plan: KernelPlan,
    slab: tuple[int, ...],
    d_scores: Int32[Array, "128 C"],
    x_t: Float[Array, "H C"],
    window: TableWindow,
    lanes: slice,
) -> dict[int, Float32[Array, "H 128"]]:
    """Backward through x . table for the blocks of a slab: adds to the table's gradient, returns that of each block.

    Args:
      slab: blocks of x.
      d_scores: gradient of the scores, the blocks packed; rows are the block's tokens.
      x_t: queries (c2p) or keys (p2c) of the head, transposed.
      window: of the table.
      lanes: of the head.
    """
    by_offset, d_blocks, d_table = unskew(plan, d_scores), {}, None
    for block in slab[::-1]:
        columns = window_slice(window.base, plan.chunk - (block + 1) * LANES, plan.chunk + LANES)
        offsets = unpack(by_offset, slab, block).astype(x_t.dtype)
        added = product(x_t[:, block_slice(block)], offsets, 1, 0)
        # Each block reaches 128 columns further than the one after it: the sum of a slab is stored once.
        d_table = added if d_table is None else _sum_shifted(d_table, added)
        d_blocks[block] = product(window.table[lanes, columns], offsets, 1, 1)
    columns = window_slice(window.base, plan.chunk - (slab[-1] + 1) * LANES, plan.chunk + len(slab) * LANES)
    window.gradient[lanes, columns] += d_table
    return d_blocks


def _sum_shifted(left: Float32[Array, "H n"], right: Float32[Array, "H n"]) -> Float32[Array, "H n+128"]:
    """Returns the sum of two blocks of columns, of which the right one begins 128 columns after the left one."""
    return jnp.concatenate([left[:, :LANES], left[:, LANES:] + right[:, :-LANES], right[:, -LANES:]], axis=1)


def _sum(blocks: list[Float32[Array, "rows columns"]]) -> Float32[Array, "rows columns"]:
    return functools.reduce(operator.add, blocks)


def _side_by_side(plan: KernelPlan, blocks: dict[int, Float32[Array, "H 128"]]) -> Float32[Array, "H C"]:
    return jnp.concatenate([blocks[block] for block in range(plan.blocks)], axis=1)
