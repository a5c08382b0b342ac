"""The scores of a tile: the three terms lined up, scaled and masked, in units of log 2."""

import math

import jax
import jax.numpy as jnp

from .tiles import LANES, MASKED, Plan, at, pack, product, rows, skew, unpack


def table_bases(plan: Plan, i, j) -> tuple:
    """Where the windows of the c2p and the p2c table for query chunk i and key chunk j start, 2C rows each."""
    return (plan.chunks - 1 - i + j) * plan.chunk, (plan.chunks - 1 + i - j) * plan.chunk


def table_products(plan: Plan, x: jax.Array, table, base, out, tiles=None) -> None:
    """Multiplies 128-row tiles of a table's window (all 2C / 128 unless said) with every row block of x they reach.

    Block i of x needs the C + 128 rows of the window from C - 128 (i + 1) on; the products of tile after tile line up
    in out [C, C + 128]. One tile's weights serve all blocks, for loading weights costs as much as multiplying.
    """
    blocks = plan.blocks
    for tile in range(2 * blocks) if tiles is None else tiles:
        first, last = max(0, blocks - 1 - tile), min(blocks - 1, 2 * blocks - 1 - tile)
        weights = table[at(base, tile * LANES, LANES), :]
        products = product(x[rows(first, last - first + 1)], weights, 1, 1)
        for block in range(first, last + 1):
            out[rows(block), rows(tile - (blocks - 1 - block))] = products[rows(block - first)]


def turn_c2p(plan: Plan, products, c2p) -> None:
    """products [C queries, C + 128], by offset -> c2p int32 [C keys, 128 a slab of query blocks]."""
    for n, slab in enumerate(plan.slabs):
        c2p[:, rows(n)] = skew(plan, pack(plan, [products[rows(block)] for block in slab])).T


def segment_codes(query_segments: jax.Array, key_segments: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """What the lanes of other heads carry so that c2c comes out masked: int32 [B, 1, S] -> two [B, S, 128].

    Two lanes a bit of the segment: (bit, 1 - bit) of the query against (1 - bit, bit) of the key, times -2^20. Within a
    segment every single product is exactly 0; any other pair differs in a bit. 64 lanes hold all 32 bits. The number
    is far below any real score and small enough that a rounded multiply-add, where a row sees nothing, stays finite.
    """
    lane = jnp.arange(LANES) % 64

    def bits(segments: jax.Array, parity: jax.Array) -> jax.Array:
        return ((segments.swapaxes(1, 2) >> (lane // 2)) & 1 ^ parity).astype(dtype)

    return bits(query_segments, lane % 2), bits(key_segments, 1 - lane % 2) * jnp.asarray(-(2.0**20), dtype)


def visible_pairs(plan: Plan, refs, row: int = 0) -> list[jax.Array | None]:
    """Where one head fills all lanes: which queries see each block of keys, bool [128 keys, C queries] a block."""
    if plan.heads > 1:
        return [None] * plan.blocks
    segments, visible = refs["key_segments"][row], []
    for block in range(plan.blocks):
        column = jnp.broadcast_to(segments[:, rows(block)], (LANES, LANES)).T
        visible.append(jnp.concatenate([column] * plan.blocks, axis=1) == refs["query_segments"][row])
    return visible


def own_lanes(plan: Plan, refs, head: int, row: int = 0) -> tuple[jax.Array, jax.Array]:
    """Keys and queries [C, 128] of one head, with the codes of their segments in the lanes of the others."""
    if plan.heads == 1:
        return refs["key"][row], refs["query"][row]
    keys = plan.pick(refs["key"][row], head, refs["key_code"][row])
    return keys, plan.pick(refs["query"][row], head, refs["query_code"][row])


def slab_terms(plan: Plan, slab: tuple[int, ...], own_key, own_query, p2c_products) -> dict[int, tuple]:
    """For each key block of a slab: c2c [128 keys, C queries], the packed p2c term, the slab.

    Args:
      own_key, own_query: [C, 128], see `own_lanes`.
      p2c_products: [C keys, C + 128], by offset, or None without the term.
    """
    c2c = product(own_key[rows(slab[0], len(slab))], own_query, 1, 1)
    p2c = None
    if p2c_products is not None:
        p2c = skew(plan, pack(plan, [p2c_products[rows(block)] for block in slab]))
    return {block: (c2c[rows(n)], p2c, slab) for n, block in enumerate(slab)}


def block_scores(plan: Plan, block: int, terms: dict[int, tuple], c2p, visible) -> jax.Array:
    """Scores [128 keys, C queries] of one key block, from `slab_terms` and what `turn_c2p` wrote (or None)."""
    scores, p2c, slab = terms[block]
    if p2c is not None:
        scores += unpack(p2c, slab, block)
    if c2p is not None:
        scores += _c2p_of_keys(plan, c2p, block)
    return scaled(plan, scores, visible)


def scaled(plan: Plan, scores: jax.Array, visible: jax.Array | None) -> jax.Array:
    scores *= plan.scale * math.log2(math.e)
    return scores if visible is None else jnp.where(visible, scores, MASKED)


def _c2p_of_keys(plan: Plan, c2p, block: int) -> jax.Array:
    """[128 keys of the block, C queries], from slabs of query blocks."""
    parts = {}
    for n, slab in enumerate(plan.slabs):
        for queries in slab:
            parts[queries] = unpack(c2p[rows(block), rows(n)], slab, queries)
    return jnp.concatenate([parts[queries] for queries in range(plan.blocks)], axis=1)
