"""The forward kernel: context and log-sum-exp of a group of heads, one tile of queries and keys a grid step."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .scores import block_scores, own_lanes, slab_terms, table_bases, table_products, turn_c2p, visible_pairs
from .tiles import LANES, MASKED, VMEM_LIMIT, Plan, head_salt, kept, product, rows


@functools.partial(jax.jit, static_argnums=0)  # traced once for all layers
def forward(plan: Plan, scalars, ranges, inputs: dict) -> tuple[jax.Array, jax.Array]:
    """Context [B, S, W] and log2-sum-exp2 [B, W / head size, 1, S] of the scores, float32; W is a multiple of 128.

    Args:
      scalars: int32 [3], dropout seed and how many sequences and heads come before these on the mesh.
      ranges: (int32 [B * chunks], int32 [B * chunks]), lowest and highest segment of each chunk, see `fused.py`.
      inputs: query, key, value [B, S, W]; query_segments, key_segments int32 [B, 1, S], of padding 0 and -1;
        query_code, key_code [B, S, 128], see `segment_codes`, or None where one head fills 128 lanes;
        key_table, query_table [2S, W], rows for the distances S - t and t - S, or None.
    """
    batch, _, width = inputs["query"].shape
    prefetches = plan.c2p and plan.chunks == 1

    def queries(group, row, i, j, *_):
        return row, i, group

    def keys(group, row, i, j, *_):
        return row, j, group

    block = (1, plan.chunk, LANES)
    table = pl.BlockSpec((2 * plan.length, LANES), lambda group, row, i, j, *_: (0, group))
    specs = {
        "query": pl.BlockSpec(block, queries),
        "key": pl.BlockSpec(block, keys),
        "value": pl.BlockSpec(block, keys),
        "query_segments": pl.BlockSpec((1, 1, plan.chunk), lambda group, row, i, j, *_: (row, 0, i)),
        "key_segments": pl.BlockSpec((1, 1, plan.chunk), lambda group, row, i, j, *_: (row, 0, j)),
        "query_code": pl.BlockSpec(block, lambda group, row, i, j, *_: (row, i, 0)) if plan.heads > 1 else None,
        "key_code": pl.BlockSpec(block, lambda group, row, i, j, *_: (row, j, 0)) if plan.heads > 1 else None,
        "key_table": table if plan.c2p else None,
        "query_table": table if plan.p2c else None,
        "next_query": pl.BlockSpec(block, lambda group, row, i, j, *_: (jnp.minimum(row + 1, batch - 1), i, group))
        if prefetches
        else None,
    }
    inputs = inputs | {"next_query": inputs["query"] if prefetches else None}
    statistics = pl.BlockSpec((1, plan.heads, 1, plan.chunk), lambda group, row, i, j, *_: (row, group, 0, i))
    products = pltpu.VMEM((plan.chunk, plan.chunk + LANES), jnp.float32)
    running = pltpu.VMEM((plan.heads, 1, plan.chunk), jnp.float32)
    scratch: dict[str, Any] = {
        "c2p_products": products if plan.c2p else None,
        "p2c_products": pltpu.VMEM((plan.heads, plan.chunk, plan.chunk + LANES), jnp.float32) if plan.p2c else None,
        "c2p": pltpu.VMEM((plan.heads, plan.chunk, len(plan.slabs) * LANES), jnp.int32) if plan.c2p else None,
        "highest": running if plan.chunks > 1 else None,
        "total": running if plan.chunks > 1 else None,
        "context": pltpu.VMEM((LANES, plan.chunk), jnp.float32) if plan.chunks > 1 else None,
    }
    context, lse = pl.pallas_call(
        functools.partial(_kernel, plan),
        name="disentangled_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(width // LANES, batch, plan.chunks, plan.chunks),
            in_specs=[specs],
            out_specs=[pl.BlockSpec(block, queries), statistics],
            scratch_shapes=[scratch],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(inputs["query"].shape, inputs["query"].dtype),
            jax.ShapeDtypeStruct((batch, width // plan.head_size, 1, plan.length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
    )(scalars, *ranges, inputs)
    return context, lse


def _kernel(plan: Plan, scalars, lowest, highest, refs, context, lse, scratch) -> None:
    row, i, j = (pl.program_id(axis) for axis in (1, 2, 3))
    if plan.chunks == 1:
        write_row(plan, refs, context, lse, _tile(plan, scalars, refs, scratch, [None] * plan.heads, 0, 0))
        return

    @pl.when(j == 0)
    def _():
        scratch["highest"][...] = jnp.full_like(scratch["highest"], MASKED)
        scratch["total"][...] = jnp.zeros_like(scratch["total"])
        scratch["context"][...] = jnp.zeros_like(scratch["context"])

    def state(head: int):
        return scratch["highest"][head], scratch["total"][head], scratch["context"][plan.lanes(head)]

    query_chunk, key_chunk = row * plan.chunks + i, row * plan.chunks + j

    @pl.when((lowest[query_chunk] <= highest[key_chunk]) & (lowest[key_chunk] <= highest[query_chunk]))
    def _():
        states = _tile(plan, scalars, refs, scratch, [state(head) for head in range(plan.heads)], i, j)
        for head, (maximum, total, accumulated) in enumerate(states):
            scratch["highest"][head], scratch["total"][head] = maximum, total
            scratch["context"][plan.lanes(head)] = accumulated

    @pl.when(j == plan.chunks - 1)
    def _():
        write_row(plan, refs, context, lse, [state(head) for head in range(plan.heads)])


def _tile(plan: Plan, scalars, refs, scratch, states: list, i, j) -> list:
    """Takes the keys of one chunk into (maximum [1, C], sum [1, C], unnormalized context [head size, C]) a head."""
    query, key = refs["query"][0], refs["key"][0]
    c2p_base, p2c_base = table_bases(plan, i, j)

    def first_head():
        table_products(plan, plan.pick(query, 0), refs["key_table"], c2p_base, scratch["c2p_products"])

    if plan.c2p and plan.chunks > 1:
        first_head()
    elif plan.c2p:  # later rows find the products that the row before left them
        pl.when(pl.program_id(1) == 0)(first_head)
    values = refs["value"][0].T  # after the branch: what stands before it is scheduled apart
    visible, results = visible_pairs(plan, refs), []
    for head, before in enumerate(states):
        state = before
        p2c_products = c2p = following = None
        if plan.p2c:
            p2c_products = scratch["p2c_products"].at[head]
            table_products(plan, plan.pick(key, head), refs["query_table"], p2c_base, p2c_products)
        if plan.c2p:
            c2p = scratch["c2p"].at[head]
            turn_c2p(plan, scratch["c2p_products"], c2p)
            if head + 1 < plan.heads:
                following = plan.pick(query, head + 1)
            elif plan.chunks == 1:
                following = plan.pick(refs["next_query"][0], 0)
        salt, tiles = head_salt(plan, scalars, pl.program_id(1), head), iter(range(2 * plan.blocks))
        own_key, own_query = own_lanes(plan, refs, head)
        terms = {}
        for slab in plan.slabs:
            terms |= slab_terms(plan, slab, own_key, own_query, p2c_products)
        for block in terms:
            scores = block_scores(plan, block, terms, c2p, visible[block])
            if following is not None:  # these fill the matrix unit while the softmax keeps the vector unit busy
                two = itertools.islice(tiles, 2)
                table_products(plan, following, refs["key_table"], c2p_base, scratch["c2p_products"], two)
            keep = None
            if plan.drop_below:
                keep = kept(plan, salt, j * plan.chunk + block * LANES, i * plan.chunk)
            state = online_softmax(plan, scores, keep, values[plan.lanes(head), rows(block)], state)
        results.append(state)
    return results


def online_softmax(plan: Plan, scores: jax.Array, keep: jax.Array | None, values: jax.Array, state) -> tuple:
    """Takes scores [128 keys, C] and values [head size, 128] of a block of keys into (maximum, sum, context)."""
    maximum = jnp.max(scores, axis=0, keepdims=True)
    if state is not None:
        maximum = jnp.maximum(maximum, state[0])
    weights = jnp.exp2(scores - maximum)
    total = jnp.sum(weights, axis=0, keepdims=True)
    if keep is not None:
        weights = jnp.where(keep, weights, 0)
    context = product(values, weights.astype(values.dtype), 1, 0)
    if state is None:
        return maximum, total, context
    shrink = jnp.exp2(state[0] - maximum)
    return maximum, state[1] * shrink + total, state[2] * shrink + context


def write_row(plan: Plan, refs, context, lse, states: list, row: int = 0) -> None:
    """Divides by the sums. A padding query gets a zero context and a log-sum-exp that makes its weights zero."""
    real, parts = refs["query_segments"][row] != 0, []
    for head, (maximum, total, accumulated) in enumerate(states):
        seen = real & (total > 0)
        parts.append(accumulated * jnp.where(seen, 1 / (total * plan.kept_share), 0))
        lse[row, head] = jnp.where(seen, maximum + jnp.log2(total), -MASKED)
    context[row] = jnp.concatenate(parts, axis=0).astype(context.dtype).T
