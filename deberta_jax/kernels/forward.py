"""The forward kernel: context and log-sum-exp of a group of heads, one tile of queries and keys per grid step.

Two orders matter for speed. Within a head, the products of the next head with the c2p table are emitted between the
blocks of the softmax: they occupy the matrix unit while the softmax occupies the vector unit. And where a sequence is
one tile, the last head of a step computes the products of the first head of the next sequence into scratch memory,
which outlives the step: the compiler moves no work across the end of a step, and without this the matrix unit would
idle at the beginning of each. That is why the axis of sequences is "arbitrary" (sequential) and not "parallel".
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int32

from .operands import (
    ChunkSegments,
    ForwardInputs,
    ForwardOutputs,
    ForwardRefs,
    ForwardScratch,
    KeptProbabilities,
    KernelInputs,
    Ref,
    kept_shapes,
    kept_specs,
    tile_specs,
)
from .plan import LANES, KernelPlan
from .scores import (
    ChunkIndex,
    block_scores,
    far_head,
    head_with_codes,
    near_or_far,
    slab_terms,
    table_bases,
    table_products,
    turn_c2p,
    visible_pairs,
)
from .tiles import MASKED, VMEM_LIMIT, block_slice, head_salt, keep_block, only_head, product


class SoftmaxState(NamedTuple):
    """A softmax over the keys seen so far: maximum of the scores, sum of the weights, context before the division."""

    maximum: Float[Array, "1 C"]
    total: Float[Array, "1 C"]
    context: Float[Array, "H C"]


@functools.partial(jax.jit, static_argnums=0)  # traced once for all layers
def forward(
    plan: KernelPlan,
    origin: Int32[Array, "3"],
    chunk_segments: ChunkSegments,
    inputs: KernelInputs[jax.Array],
) -> ForwardOutputs[jax.Array]:
    """Runs the forward kernel.

    Args:
      plan: of the call; more than 128 tokens, see `forward_128`.
      origin: see `tiles.head_salt`.
      chunk_segments: of the queries' chunks, see `ChunkSegments`.
      inputs: see `KernelInputs`.
    """
    batch, _, width = inputs.query.shape
    prefetches = plan.c2p and plan.chunks == 1
    # A grid step is (group of heads, sequence, query chunk i, key chunk j).
    specs = tile_specs(plan, query_axis=2, key_axis=3)
    next_query = pl.BlockSpec(
        (1, plan.chunk, LANES), lambda group, sequence, i, j, *_: (jnp.minimum(sequence + 1, batch - 1), i, group)
    )
    lse_block = pl.BlockSpec((1, plan.heads, 1, plan.chunk), lambda group, sequence, i, j, *_: (sequence, group, 0, i))
    out = pl.pallas_call(
        functools.partial(_kernel, plan),
        name="disentangled_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(width // LANES, batch, plan.chunks, plan.chunks),
            in_specs=[ForwardInputs(specs, next_query if prefetches else None)],
            out_specs=[ForwardOutputs(specs.query, lse_block, kept_specs(plan))],
            scratch_shapes=[_scratch_shapes(plan)],
        ),
        out_shape=[
            ForwardOutputs(
                jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
                jax.ShapeDtypeStruct((batch, width // plan.head_size, 1, plan.length), jnp.float32),
                kept_shapes(plan, inputs.query),
            )
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
    )(origin, chunk_segments, ForwardInputs(inputs, inputs.query if prefetches else None))
    return out[0]


def _scratch_shapes(plan: KernelPlan) -> ForwardScratch:
    products = (plan.chunk, plan.chunk + LANES)
    c2p = (plan.heads, plan.chunk, len(plan.slabs) * LANES)
    statistics = pltpu.VMEM((plan.heads, 1, plan.chunk), jnp.float32) if plan.chunks > 1 else None
    return ForwardScratch(
        c2p_products=pltpu.VMEM(products, jnp.float32) if plan.c2p else None,
        p2c_products=pltpu.VMEM((plan.heads, *products), jnp.float32) if plan.p2c else None,
        c2p=pltpu.VMEM(c2p, jnp.int32) if plan.c2p else None,
        maximum=statistics,
        total=statistics,
        context=pltpu.VMEM((LANES, plan.chunk), jnp.float32) if plan.chunks > 1 else None,
    )


def _kernel(
    plan: KernelPlan,
    origin: Ref,
    chunk_segments: ChunkSegments,
    inputs: ForwardInputs[Ref],
    outputs: ForwardOutputs[Ref],
    scratch: ForwardScratch,
) -> None:
    refs = ForwardRefs(origin, chunk_segments, inputs, outputs, scratch)
    sequence, i, j = (pl.program_id(axis) for axis in (1, 2, 3))
    if plan.chunks == 1:
        write_sequence(plan, inputs.shared, outputs, _tile(plan, refs, [None] * plan.heads, 0, 0))
        return

    @pl.when(j == 0)
    def _() -> None:
        scratch.maximum[...] = jnp.full_like(scratch.maximum, MASKED)
        scratch.total[...] = jnp.zeros_like(scratch.total)
        scratch.context[...] = jnp.zeros_like(scratch.context)

    def state(head: int) -> SoftmaxState:
        return SoftmaxState(scratch.maximum[head], scratch.total[head], scratch.context[plan.lanes(head)])

    lowest, highest = chunk_segments
    queries, keys = sequence * plan.chunks + i, sequence * plan.chunks + j

    def add_keys(tile: Callable[..., list[SoftmaxState]]) -> None:
        states = tile(plan, refs, [state(head) for head in range(plan.heads)], i, j)
        for head, after in enumerate(states):
            scratch.maximum[head], scratch.total[head] = after.maximum, after.total
            scratch.context[plan.lanes(head)] = after.context

    # Two chunks whose ranges of segments do not overlap see nothing of each other.
    @pl.when((lowest[queries] <= highest[keys]) & (lowest[keys] <= highest[queries]))
    def _() -> None:
        near_or_far(plan, i, j, near=lambda: add_keys(_tile), far=lambda: add_keys(_far_tile))

    @pl.when(j == plan.chunks - 1)
    def _() -> None:
        write_sequence(plan, inputs.shared, outputs, [state(head) for head in range(plan.heads)])


def _tile(
    plan: KernelPlan,
    refs: ForwardRefs,
    states: list[SoftmaxState | None],
    query_chunk: ChunkIndex,
    key_chunk: ChunkIndex,
) -> list[SoftmaxState]:
    """Adds the keys of one chunk to each head's softmax; returns the new states."""
    inputs, scratch = refs.inputs.shared, refs.scratch
    query, key = inputs.query[0], inputs.key[0]
    c2p_base, p2c_base = table_bases(plan, query_chunk, key_chunk)

    def first_head() -> None:
        table_products(plan, only_head(plan, query, 0), inputs.key_table, c2p_base, scratch.c2p_products)

    if plan.c2p and plan.chunks > 1:
        first_head()
    elif plan.c2p:  # every later sequence finds the products that the step before has prefetched
        pl.when(pl.program_id(1) == 0)(first_head)
    # A branch splits the schedule: work emitted before it could not overlap with the work after it.
    values = inputs.value[0].T
    visible, results = visible_pairs(plan, inputs), []
    for head, before in enumerate(states):
        state = before
        p2c_products = c2p = following = None
        if plan.p2c:
            p2c_products = scratch.p2c_products.at[head]
            table_products(plan, only_head(plan, key, head), inputs.query_table, p2c_base, p2c_products)
        if plan.c2p:
            c2p = scratch.c2p.at[head]
            turn_c2p(plan, scratch.c2p_products, c2p)  # from here on c2p_products may be overwritten
            if head + 1 < plan.heads:
                following = only_head(plan, query, head + 1)
            elif refs.inputs.next_query is not None:
                following = only_head(plan, refs.inputs.next_query[0], 0)
        salt, table_blocks = head_salt(plan, refs.origin, pl.program_id(1), head), iter(range(2 * plan.blocks))
        key_of_head, query_of_head = head_with_codes(plan, inputs, head)
        terms = {}
        for slab in plan.slabs:
            terms |= slab_terms(plan, slab, key_of_head, query_of_head, p2c_products)
        for block in terms:
            scores = block_scores(plan, block, terms[block], c2p, visible[block])
            if following is not None:  # a tile has twice as many table blocks as key blocks
                two = itertools.islice(table_blocks, 2)
                table_products(plan, following, inputs.key_table, c2p_base, scratch.c2p_products, two)
            keep = keep_block(plan, salt, block, query_chunk, key_chunk)
            kept = kept_of_block(refs.outputs, head, block)
            state = online_softmax(scores, keep, values[plan.lanes(head), block_slice(block)], state, kept)
        assert state is not None
        results.append(state)
    return results


def _far_tile(
    plan: KernelPlan,
    refs: ForwardRefs,
    states: list[SoftmaxState | None],
    query_chunk: ChunkIndex,
    key_chunk: ChunkIndex,
) -> list[SoftmaxState]:
    """Does what `_tile` does for chunks that are far from each other."""
    inputs, results = refs.inputs.shared, []
    values, visible = inputs.value[0].T, visible_pairs(plan, inputs)
    for head, before in enumerate(states):
        state = before
        salt = head_salt(plan, refs.origin, pl.program_id(1), head)
        key, query, c2p = far_head(plan, inputs, head, query_chunk, key_chunk)
        for slab in plan.slabs:
            for block, terms in slab_terms(plan, slab, key, query, None).items():
                scores = block_scores(plan, block, terms, None, visible[block])
                keep = keep_block(plan, salt, block, query_chunk, key_chunk)
                state = online_softmax(scores, keep, values[plan.lanes(head), block_slice(block)], state, None, c2p)
        assert state is not None
        results.append(state)
    return results


def kept_of_block(
    outputs: ForwardOutputs[Ref], head: int, block: int, sequence: int = 0
) -> KeptProbabilities[Ref] | None:
    """Views of what a block of keys keeps: weights [128 keys, S queries] and the maximum [1, S queries]."""
    if outputs.kept is None:
        return None
    weights, maxima = outputs.kept
    rows = (sequence, head, block_slice(block))
    return KeptProbabilities(weights.at[rows], maxima.at[sequence, head, block : block + 1])


def online_softmax(
    scores: Float[Array, "128 C"],
    keep: Bool[Array, "128 C"] | None,
    values: Float[Array, "H 128"],
    state: SoftmaxState | None,
    kept: KeptProbabilities[Ref] | None,
    of_queries: Float[Array, "1 C"] | None = None,
) -> SoftmaxState:
    """Adds a block of keys to a softmax, or starts one with it.

    Args:
      scores: of the block.
      keep: the block's dropout mask.
      values: of the block, transposed.
      state: of the keys before.
      kept: see `kept_of_block`; written.
      of_queries: a part of all scores of a query that `scores` does not contain.
    """
    maximum = jnp.max(scores, axis=0, keepdims=True)
    if of_queries is not None:
        maximum += of_queries
    if state is not None:
        maximum = jnp.maximum(maximum, state.maximum)
    weights = signed = jnp.exp2(scores - (maximum if of_queries is None else maximum - of_queries))
    total = jnp.sum(weights, axis=0, keepdims=True)  # dropout follows the normalization: the sum is over all keys
    if keep is not None:
        weights, signed = jnp.where(keep, weights, 0), jnp.where(keep, weights, -weights)
    if kept is not None:
        kept.weights[...], kept.maxima[...] = signed.astype(values.dtype), maximum
    context = product(values, weights.astype(values.dtype), 1, 0)
    if state is None:
        return SoftmaxState(maximum, total, context)
    shrink = jnp.exp2(state.maximum - maximum)
    return SoftmaxState(maximum, state.total * shrink + total, state.context * shrink + context)


def write_sequence(
    plan: KernelPlan,
    inputs: KernelInputs[Ref],
    outputs: ForwardOutputs[Ref],
    states: list[SoftmaxState],
    sequence: int = 0,
) -> None:
    """Divides by the sums and writes the results of a sequence of the grid step.

    A padding query gets a zero context, and a log-sum-exp so large that the backward kernel finds all its weights 0.
    """
    real, parts = inputs.query_segments[sequence] != 0, []
    for head, (maximum, total, accumulated) in enumerate(states):
        seen = real & (total > 0)
        parts.append(accumulated * jnp.where(seen, 1 / (total * plan.kept_share), 0))
        outputs.lse[sequence, head] = jnp.where(seen, maximum + jnp.log2(total), -MASKED)
    outputs.context[sequence] = jnp.concatenate(parts, axis=0).astype(outputs.context.dtype).T
