"""The scores of a tile: the three terms lined up, scaled and masked, in units of log 2.

Units of log 2: the scale contains log2(e), so that the softmax can use exp2, which is what the hardware has.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int32

from .operands import KernelInputs, Ref
from .plan import LANES, KernelPlan
from .tiles import MASKED, block_slice, only_head, pack, product, skew, unpack, window_slice

_SUBLANES = 8  # the fewest rows that a product may have
ChunkIndex = Int32[Array, ""] | int  # of a query or key chunk: a program id, or 0 where a sequence is one chunk


class FarHead(NamedTuple):
    """What the scores of one head of a far tile are computed from, see `KernelPlan.far`.

    Attributes:
      key: with the segment codes in the other lanes.
      query: with the codes, and with the row of the p2c table added.
      c2p: this term of each query, scaled; it is the same for all keys. None without the term.
    """

    key: Float[Array, "C 128"]
    query: Float[Array, "C 128"]
    c2p: Float[Array, "1 C"] | None


class BlockTerms(NamedTuple):
    """What the scores of a key block are made of, before they are summed.

    Attributes:
      c2c: [128 keys, C queries].
      p2c: the packed p2c term of the block's slab, or None without the term.
      slab: the blocks that are packed into `p2c`.
    """

    c2c: Float[Array, "128 C"]
    p2c: Int32[Array, "128 C"] | None
    slab: tuple[int, ...]


def table_bases(plan: KernelPlan, query_chunk: ChunkIndex, key_chunk: ChunkIndex) -> tuple[ChunkIndex, ChunkIndex]:
    """Returns the first row of the window of 2C rows that a tile reads in the c2p and in the p2c table.

    With row t of the c2p table at distance S - t, query i and key j read row S - i + j. The smallest is that of the
    last query and the first key of the tile, rounded down to a multiple of C. For p2c, i and j change roles.
    """
    base_c2p = (plan.chunks - 1 - query_chunk + key_chunk) * plan.chunk
    base_p2c = (plan.chunks - 1 + query_chunk - key_chunk) * plan.chunk
    return base_c2p, base_p2c


def table_products(
    plan: KernelPlan,
    x: Float[Array, "C 128"],
    table: Ref,
    base: ChunkIndex,
    out: Ref,
    table_blocks: Iterable[int] | None = None,
) -> None:
    """Multiplies blocks of a table's window with every block of x that they reach; writes out [C, C + 128].

    Block n of x needs the C + 128 rows of the window from C - 128 (n + 1): row r of the block then finds offset
    c = j + 128 - r in column c of out. The loop runs over blocks of the table and not of x, as loading 128 x 128
    weights into the matrix unit costs as much as multiplying 128 rows with them: loaded once, they serve all blocks.

    Args:
      table_blocks: which blocks of the window to multiply (default: all 2C / 128).
    """
    blocks = plan.blocks
    for table_block in range(2 * blocks) if table_blocks is None else table_blocks:
        first, last = max(0, blocks - 1 - table_block), min(blocks - 1, 2 * blocks - 1 - table_block)
        weights = table[window_slice(base, table_block * LANES, LANES), :]
        products = product(x[block_slice(first, last - first + 1)], weights, 1, 1)
        for block in range(first, last + 1):
            columns = block_slice(table_block - (blocks - 1 - block))
            out[block_slice(block), columns] = products[block_slice(block - first)]


def turn_c2p(plan: KernelPlan, products: Ref, c2p: Ref) -> None:
    """Skews the c2p products and transposes them to [keys, queries], the orientation of the scores.

    The p2c products need no transpose: their rows are keys.

    Args:
      products: [C queries, C + 128], by offset.
      c2p: int32 [C keys, 128 per slab of query blocks], written.
    """
    for n, slab in enumerate(plan.slabs):
        c2p[:, block_slice(n)] = skew(plan, pack(plan, [products[block_slice(block)] for block in slab])).T


def near_or_far(
    plan: KernelPlan,
    query_chunk: Int32[Array, ""],
    key_chunk: Int32[Array, ""],
    *,
    near: Callable[[], None],
    far: Callable[[], None],
) -> None:
    """Runs one of two functions for a tile, by whether its chunks are far from each other."""
    if plan.far >= plan.chunks:
        near()
        return
    is_near = (query_chunk - key_chunk < plan.far) & (key_chunk - query_chunk < plan.far)
    pl.when(is_near)(near)
    pl.when(~is_near)(far)


def far_window(base: ChunkIndex) -> Any:
    """Returns the slice of 128 rows of a table that are equal, in the window of a far tile."""
    return window_slice(base, LANES, LANES)  # a tile does not read row 0 of its window


def far_query(
    query: Float[Array, "rows columns"], table: Float[Array, "rows2 columns2"]
) -> Float[Array, "rows columns"]:
    """Adds the one row of the p2c table that a far tile reads to its queries: k . (q + row) has both c2c and p2c.

    `table` broadcasts against the queries.
    """
    return (query.astype(jnp.float32) + table.astype(jnp.float32)).astype(query.dtype)


def far_head(
    plan: KernelPlan, inputs: KernelInputs[Ref], head: int, query_chunk: ChunkIndex, key_chunk: ChunkIndex
) -> FarHead:
    """Returns what the scores of one head of a far tile are computed from."""
    c2p_base, p2c_base = table_bases(plan, query_chunk, key_chunk)
    key, query = head_with_codes(plan, inputs, head)
    c2p = None
    if inputs.key_table is not None:
        rows = inputs.key_table[far_window(c2p_base), :][:_SUBLANES]
        c2p = scale_and_mask(plan, product(rows, only_head(plan, inputs.query[0], head), 1, 1)[:1], None)
    if inputs.query_table is not None:
        row = inputs.query_table[far_window(p2c_base), :][:1]
        query = far_query(query, only_head(plan, row, head))
    return FarHead(key, query, c2p)


def segment_codes(
    query_segments: Int32[Array, "B 1 S"], key_segments: Int32[Array, "B 1 S"], dtype: jnp.dtype
) -> tuple[Float[Array, "B S 128"], Float[Array, "B S 128"]]:
    """Returns lanes whose product masks: 0 for a query and a key of one segment, at most -2^20 for others.

    Two lanes per bit of the segment's number: (bit, 1 - bit) of the query against (1 - bit, bit) of the key, times
    -2^20. Within a segment every single product is exactly 0; two segments differ in a bit. 64 lanes hold all 32 bits,
    and heads of at most 64 leave 64 lanes idle. -2^20 is far below any real score, and small enough that the scores of
    a row that sees nothing stay finite after rounding.
    """
    lane = jnp.arange(LANES) % 64

    def bits(segments: jax.Array, parity: jax.Array) -> jax.Array:
        return ((segments.swapaxes(1, 2) >> (lane // 2)) & 1 ^ parity).astype(dtype)

    return bits(query_segments, lane % 2), bits(key_segments, 1 - lane % 2) * jnp.asarray(-(2.0**20), dtype)


def visible_pairs(plan: KernelPlan, inputs: KernelInputs[Ref], sequence: int = 0) -> list[Bool[Array, "128 C"] | None]:
    """Returns for each key block which queries see which keys; None where `segment_codes` do the masking."""
    if plan.heads > 1:
        return [None] * plan.blocks
    segments, visible = inputs.key_segments[sequence], []
    for block in range(plan.blocks):
        # A row of 128 segments becomes a column by a transpose of 128 equal rows.
        column = jnp.broadcast_to(segments[:, block_slice(block)], (LANES, LANES)).T
        visible.append(jnp.concatenate([column] * plan.blocks, axis=1) == inputs.query_segments[sequence])
    return visible


def head_with_codes(
    plan: KernelPlan, inputs: KernelInputs[Ref], head: int, sequence: int = 0
) -> tuple[Float[Array, "C 128"], Float[Array, "C 128"]]:
    """Returns keys and queries of one head, with the segment codes in the lanes of the other heads."""
    key, query = inputs.key[sequence], inputs.query[sequence]
    if inputs.key_code is None or inputs.query_code is None:
        return key, query
    key = only_head(plan, key, head, inputs.key_code[sequence])
    return key, only_head(plan, query, head, inputs.query_code[sequence])


def slab_terms(
    plan: KernelPlan,
    slab: tuple[int, ...],
    key: Float[Array, "C 128"],
    query: Float[Array, "C 128"],
    p2c_products: Ref | None,
) -> dict[int, BlockTerms]:
    """Computes c2c and p2c for the key blocks of a slab; key and query are those of `head_with_codes`.

    Args:
      p2c_products: [C keys, C + 128], by offset.
    """
    c2c = product(key[block_slice(slab[0], len(slab))], query, 1, 1)
    p2c = None
    if p2c_products is not None:
        p2c = skew(plan, pack(plan, [p2c_products[block_slice(block)] for block in slab]))
    return {block: BlockTerms(c2c[block_slice(n)], p2c, slab) for n, block in enumerate(slab)}


def block_scores(
    plan: KernelPlan, block: int, terms: BlockTerms, c2p: Ref | None, visible: Bool[Array, "128 C"] | None
) -> Float[Array, "128 C"]:
    """Sums the terms of a key block; c2p is what `turn_c2p` wrote, or None without the term and in a far tile."""
    scores = terms.c2c
    if terms.p2c is not None:
        scores += unpack(terms.p2c, terms.slab, block)
    if c2p is not None:
        scores += _c2p_of_keys(plan, c2p, block)
    return scale_and_mask(plan, scores, visible)


def scale_and_mask(
    plan: KernelPlan, scores: Float[Array, "rows C"], visible: Bool[Array, "rows C"] | None
) -> Float[Array, "rows C"]:
    scores *= plan.scale * math.log2(math.e)
    return scores if visible is None else jnp.where(visible, scores, MASKED)


def _c2p_of_keys(plan: KernelPlan, c2p: Ref, block: int) -> Float[Array, "128 C"]:
    """Reads the c2p term of a key block out of all slabs of query blocks."""
    parts = {}
    for n, slab in enumerate(plan.slabs):
        for query_block in slab:
            parts[query_block] = unpack(c2p[block_slice(block), block_slice(n)], slab, query_block)
    return jnp.concatenate([parts[query_block] for query_block in range(plan.blocks)], axis=1)
