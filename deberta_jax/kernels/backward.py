"""The backward kernel: gradients of query, key, value and of both tables, one tile a grid step.

Everything but the scores stands transposed, [head size, tokens]: products then load few weights. The tables' gradients
are summed in VMEM over the whole batch, in the order of the grid: deterministic, without atomics.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .scores import block_scores, own_lanes, slab_terms, table_bases, table_products, turn_c2p, visible_pairs
from .tiles import LANES, VMEM_LIMIT, Plan, at, head_salt, kept, pack, product, rows, unpack, unskew


@functools.partial(jax.jit, static_argnums=0)  # traced once for all layers
def backward(plan: Plan, scalars, ranges, inputs: dict) -> tuple:
    """Gradients of query, key, value [B, S, W] and of both tables, float32 [W, 2S] or None.

    Args:
      scalars, ranges: as of `forward`.
      inputs: as of `forward`, and context, d_context [B, S, W]; lse float32 [B, W / head size, 1, S], the forward's
        log2-sum-exp2.
    """
    batch, _, width = inputs["query"].shape
    groups = width // LANES

    def queries(group, row, j, i, *_):
        return row, i, group

    def keys(group, row, j, i, *_):
        return row, j, group

    def whole(group, row, j, i, *_):
        return row, 0, group

    block = (1, plan.chunk, LANES)
    # A table stays for all sequences of a group of heads: one buffer does, and leaves room for long ones.
    whole_group = {"pipeline_mode": pl.Buffered(1)}
    table = pl.BlockSpec((2 * plan.length, LANES), lambda group, row, j, i, *_: (0, group), **whole_group)
    table_transposed = pl.BlockSpec((LANES, 2 * plan.length), lambda group, row, j, i, *_: (group, 0), **whole_group)
    specs = {
        "query": pl.BlockSpec(block, queries),
        "key": pl.BlockSpec(block, keys),
        "value": pl.BlockSpec(block, keys),
        "context": pl.BlockSpec(block, queries),
        "d_context": pl.BlockSpec(block, queries),
        "lse": pl.BlockSpec((1, plan.heads, 1, plan.chunk), lambda group, row, j, i, *_: (row, group, 0, i)),
        "query_segments": pl.BlockSpec((1, 1, plan.chunk), lambda group, row, j, i, *_: (row, 0, i)),
        "key_segments": pl.BlockSpec((1, 1, plan.chunk), lambda group, row, j, i, *_: (row, 0, j)),
        "query_code": pl.BlockSpec(block, lambda group, row, j, i, *_: (row, i, 0)) if plan.heads > 1 else None,
        "key_code": pl.BlockSpec(block, lambda group, row, j, i, *_: (row, j, 0)) if plan.heads > 1 else None,
        "key_table": table if plan.c2p else None,
        "query_table": table if plan.p2c else None,
        "key_table_transposed": table_transposed if plan.c2p else None,
        "query_table_transposed": table_transposed if plan.p2c else None,
    }
    inputs = inputs | {
        "key_table_transposed": inputs["key_table"].T if plan.c2p else None,
        "query_table_transposed": inputs["query_table"].T if plan.p2c else None,
    }
    products = pltpu.VMEM((plan.chunk, plan.chunk + LANES), jnp.float32)
    of_keys, of_queries = pltpu.VMEM((LANES, plan.chunk), jnp.float32), pltpu.VMEM((LANES, plan.length), jnp.float32)
    scratch: dict[str, Any] = {
        "c2p_products": products if plan.c2p else None,
        "p2c_products": products if plan.p2c else None,
        "c2p": pltpu.VMEM((plan.chunk, len(plan.slabs) * LANES), jnp.int32) if plan.c2p else None,
        "d_scores": pltpu.VMEM((plan.chunk, plan.chunk), inputs["query"].dtype) if plan.c2p else None,
        "d_query": of_queries if plan.chunks > 1 else None,
        "d_key": of_keys if plan.chunks > 1 else None,
        "d_value": of_keys if plan.chunks > 1 else None,
    }
    rows_of_batch = jax.ShapeDtypeStruct(inputs["query"].shape, inputs["query"].dtype)
    d_table = jax.ShapeDtypeStruct((width, 2 * plan.length), jnp.float32)
    out_shape = {
        "query": rows_of_batch,
        "key": rows_of_batch,
        "value": rows_of_batch,
        "key_table": d_table if plan.c2p else None,
        "query_table": d_table if plan.p2c else None,
    }
    out_specs = {
        "query": pl.BlockSpec((1, plan.length, LANES), whole),
        "key": pl.BlockSpec(block, keys),
        "value": pl.BlockSpec(block, keys),
        "key_table": table_transposed if plan.c2p else None,
        "query_table": table_transposed if plan.p2c else None,
    }
    (out,) = pl.pallas_call(
        functools.partial(_kernel, plan),
        name="disentangled_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(groups, batch, plan.chunks, plan.chunks),
            in_specs=[specs],
            out_specs=[out_specs],
            scratch_shapes=[scratch],
        ),
        out_shape=[out_shape],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
    )(scalars, *ranges, inputs)
    return out["query"], out["key"], out["value"], out["key_table"], out["query_table"]


def _kernel(plan: Plan, scalars, lowest, highest, refs, out, scratch) -> None:
    row, j, i = (pl.program_id(axis) for axis in (1, 2, 3))
    first = (row == 0) & (j == 0) & (i == 0) if plan.chunks > 1 else row == 0

    @pl.when(first)
    def _():
        for name in ("key_table", "query_table"):
            if out[name] is not None:
                out[name][...] = jnp.zeros_like(out[name])

    if plan.chunks == 1:
        d_query, d_key, d_value = _tile(plan, scalars, refs, out, scratch, 0, 0)
        out["query"][0], out["key"][0], out["value"][0] = (
            x.astype(out["query"].dtype).T for x in (d_query, d_key, d_value)
        )
        return

    @pl.when((j == 0) & (i == 0))
    def _():
        scratch["d_query"][...] = jnp.zeros_like(scratch["d_query"])

    @pl.when(i == 0)
    def _():
        scratch["d_key"][...] = jnp.zeros_like(scratch["d_key"])
        scratch["d_value"][...] = jnp.zeros_like(scratch["d_value"])

    query_chunk, key_chunk = row * plan.chunks + i, row * plan.chunks + j

    @pl.when((lowest[query_chunk] <= highest[key_chunk]) & (lowest[key_chunk] <= highest[query_chunk]))
    def _():
        d_query, d_key, d_value = _tile(plan, scalars, refs, out, scratch, i, j)
        scratch["d_query"][:, at(i * plan.chunk, 0, plan.chunk)] += d_query
        scratch["d_key"][...] += d_key
        scratch["d_value"][...] += d_value

    @pl.when(i == plan.chunks - 1)
    def _():
        out["key"][0] = scratch["d_key"][...].astype(out["key"].dtype).T
        out["value"][0] = scratch["d_value"][...].astype(out["value"].dtype).T

    @pl.when((j == plan.chunks - 1) & (i == plan.chunks - 1))
    def _():
        out["query"][0] = scratch["d_query"][...].astype(out["query"].dtype).T


def _tile(plan: Plan, scalars, refs, out, scratch, i, j) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What one pair of chunks adds to the gradients of its queries, keys and values: float32 [128, C] each."""
    visible = visible_pairs(plan, refs)
    transposed = {name: refs[name][0].T for name in ("query", "key", "context", "d_context")}
    parts = [_head(plan, head, visible, transposed, scalars, refs, out, scratch, i, j) for head in range(plan.heads)]
    d_query, d_key, d_value = (jnp.concatenate(x, axis=0) for x in zip(*parts, strict=True))
    return d_query * plan.scale, d_key * plan.scale, d_value


def _head(plan: Plan, head: int, visible, transposed, scalars, refs, out, scratch, i, j) -> tuple:
    """Gradients [head size, C] of one head's queries, keys and values, before the scale; adds to the tables'."""
    query, key, value, d_context = (refs[name][0] for name in ("query", "key", "value", "d_context"))
    lanes, dtype = plan.lanes(head), query.dtype
    query_t, key_t, d_context_t = (transposed[name][lanes] for name in ("query", "key", "d_context"))
    # What the normalization of softmax takes away from the gradient of each of a query's scores: [1, C].
    mean = transposed["context"][lanes].astype(jnp.float32) * d_context_t.astype(jnp.float32)
    mean = jnp.sum(mean, axis=0, keepdims=True)
    own_key, own_query = own_lanes(plan, refs, head)
    c2p_base, p2c_base = table_bases(plan, i, j)
    p2c_products = c2p = None
    if plan.c2p:
        c2p = scratch["c2p"]
        table_products(plan, plan.pick(query, head), refs["key_table"], c2p_base, scratch["c2p_products"])
        turn_c2p(plan, scratch["c2p_products"], c2p)
    if plan.p2c:
        p2c_products = scratch["p2c_products"]
        table_products(plan, plan.pick(key, head), refs["query_table"], p2c_base, p2c_products)
    salt, d_keys, d_values = head_salt(plan, scalars, pl.program_id(1), head), {}, {}
    d_query_t = jnp.zeros((plan.head_size, plan.chunk), jnp.float32)
    for slab in plan.slabs:
        span = rows(slab[0], len(slab))
        terms = slab_terms(plan, slab, own_key, own_query, p2c_products)
        d_weights = product(value[span], plan.pick(d_context, head), 1, 1)
        weights, d_scores = [], []
        for n, block in enumerate(slab):
            scores = block_scores(plan, block, terms, c2p, visible[block])
            weight, d_weight = jnp.exp2(scores - refs["lse"][0, head]), d_weights[rows(n)]
            dropped = weight
            if plan.drop_below:
                keep = kept(plan, salt, j * plan.chunk + block * LANES, i * plan.chunk)
                d_weight = jnp.where(keep, d_weight * (1 / plan.kept_share), 0)
                dropped = jnp.where(keep, weight * (1 / plan.kept_share), 0)
            weights.append(dropped.astype(dtype))
            d_scores.append(weight * (d_weight - mean))
        narrow = jnp.concatenate([x.astype(dtype) for x in d_scores], axis=0)
        d_value = product(d_context_t, jnp.concatenate(weights, axis=0), 1, 1)
        d_key = product(query_t, narrow, 1, 1)
        d_query_t += product(key_t[:, span], narrow, 1, 0)
        for n, block in enumerate(slab):
            d_keys[block], d_values[block] = d_key[:, rows(n)], d_value[:, rows(n)]
            if plan.c2p:
                scratch["d_scores"][:, rows(block)] = narrow[rows(n)].T
        if plan.p2c:
            table = refs["query_table_transposed"], out["query_table"]
            for block, added in _through_table(plan, slab, d_scores, key_t, table, p2c_base, lanes).items():
                d_keys[block] += added
    if plan.c2p:
        table, of_queries = (refs["key_table_transposed"], out["key_table"]), {}
        for slab in plan.slabs:
            d_scores = [scratch["d_scores"][rows(block)].astype(jnp.float32) for block in slab]
            of_queries |= _through_table(plan, slab, d_scores, query_t, table, c2p_base, lanes)
        d_query_t += _side_by_side(plan, of_queries)
    return d_query_t, _side_by_side(plan, d_keys), _side_by_side(plan, d_values)


def _through_table(plan: Plan, slab, d_scores, x_t, table, base, lanes) -> dict[int, jax.Array]:
    """Back through x . table, for blocks of x: adds to the table's gradient, gives each block's.

    Args:
      d_scores: [128, C] a block, rows standing for the block's tokens; x_t: [head size, C].
      table: the table and its gradient, [128, 2S] both.
    """
    by_offset, found = unskew(plan, pack(plan, d_scores)), {}
    for block in slab:
        window = at(base, plan.chunk - (block + 1) * LANES, plan.chunk + LANES)
        offsets = unpack(by_offset, slab, block).astype(x_t.dtype)
        table[1][lanes, window] += product(x_t[:, rows(block)], offsets, 1, 0)
        found[block] = product(table[0][lanes, window], offsets, 1, 1)
    return found


def _side_by_side(plan: Plan, blocks: dict[int, jax.Array]) -> jax.Array:
    return jnp.concatenate([blocks[block] for block in range(plan.blocks)], axis=1)
