"""The backward kernel: gradients of query, key, value and of both tables, one tile per grid step.

This file is the call and the loop over tiles; `backward_tile.py` computes a tile. The gradients of the tables are
summed in VMEM over the whole batch, in the order of the grid. That is deterministic, and the reason why only the axis
of head groups is parallel.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from .backward_tile import tile_gradients
from .operands import (
    BackwardInputs,
    BackwardRefs,
    BackwardScratch,
    ChunkSegments,
    ForwardOutputs,
    Gradients,
    KernelInputs,
    Leaf,
    Ref,
    kept_specs,
    tile_specs,
)
from .plan import LANES, KernelPlan
from .scores import near_or_far
from .tiles import VMEM_LIMIT, window_slice


@functools.partial(jax.jit, static_argnums=0)  # traced once for all layers
def backward(
    plan: KernelPlan,
    origin: Int32[Array, "3"],
    chunk_segments: ChunkSegments,
    inputs: KernelInputs[jax.Array],
    out: ForwardOutputs[jax.Array],
    d_context: Float[Array, "B S W"],
) -> Gradients[jax.Array]:
    """Runs the backward kernel.

    Args:
      plan: of the call.
      origin: see `tiles.head_salt`.
      chunk_segments: see `ChunkSegments`.
      inputs: as for the forward kernel.
      out: the forward's results.
      d_context: the cotangent of the context.
    """
    batch, _, width = inputs.query.shape
    operands = BackwardInputs(
        context=out.context,
        d_context=d_context,
        shared=_read_inputs(plan, inputs),
        kept=out.kept,
        lse=out.lse,
        key_table_transposed=None if inputs.key_table is None else inputs.key_table.T,
        query_table_transposed=None if inputs.query_table is None else inputs.query_table.T,
    )
    input_specs, output_specs = _specs(plan)
    tokens = jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype)
    d_table = jax.ShapeDtypeStruct((width, 2 * plan.length), jnp.float32)
    gradients = pl.pallas_call(
        functools.partial(_kernel, plan),
        name="disentangled_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(width // LANES, batch, plan.chunks, plan.chunks),
            in_specs=[input_specs],
            out_specs=[output_specs],
            scratch_shapes=[_scratch_shapes(plan)],
        ),
        out_shape=[Gradients(tokens, tokens, tokens, d_table if plan.c2p else None, d_table if plan.p2c else None)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
    )(origin, chunk_segments, operands)
    return gradients[0]


def _read_inputs(plan: KernelPlan, inputs: KernelInputs[Leaf]) -> KernelInputs[Leaf]:
    """Removes what only serves to compute the probabilities, if they are kept."""
    if not plan.keeps:
        return inputs
    return inputs._replace(key_code=None, key_table=None, query_code=None, query_table=None)


def _specs(plan: KernelPlan) -> tuple[BackwardInputs[pl.BlockSpec], Gradients[pl.BlockSpec]]:
    """Blocks of a grid step (group of heads, sequence, key chunk j, query chunk i)."""
    # All sequences of a group of heads read the same block of a table: one buffer, without the second one that would
    # load ahead, leaves room in VMEM for long sequences.
    single: Any = {"pipeline_mode": pl.Buffered(1)}
    shared = tile_specs(plan, query_axis=3, key_axis=2, **single)
    table_transposed = pl.BlockSpec((LANES, 2 * plan.length), lambda group, sequence, j, i, *_: (group, 0), **single)
    inputs = BackwardInputs(
        shared=_read_inputs(plan, shared),
        kept=kept_specs(plan),
        context=shared.query,
        d_context=shared.query,
        lse=pl.BlockSpec((1, plan.heads, 1, plan.chunk), lambda group, sequence, j, i, *_: (sequence, group, 0, i)),
        key_table_transposed=table_transposed if plan.c2p else None,
        query_table_transposed=table_transposed if plan.p2c else None,
    )
    outputs = Gradients(
        query=pl.BlockSpec((1, plan.length, LANES), lambda group, sequence, j, i, *_: (sequence, 0, group)),
        key=shared.key,
        value=shared.value,
        key_table=table_transposed if plan.c2p else None,
        query_table=table_transposed if plan.p2c else None,
    )
    return inputs, outputs


def _scratch_shapes(plan: KernelPlan) -> BackwardScratch:
    products = pltpu.VMEM((plan.chunk, plan.chunk + LANES), jnp.float32)
    of_keys, of_queries = pltpu.VMEM((LANES, plan.chunk), jnp.float32), pltpu.VMEM((LANES, plan.length), jnp.float32)
    return BackwardScratch(
        c2p_products=products if plan.c2p and not plan.keeps else None,
        p2c_products=products if plan.p2c and not plan.keeps else None,
        c2p=pltpu.VMEM((plan.chunk, len(plan.slabs) * LANES), jnp.int32) if plan.c2p and not plan.keeps else None,
        d_scores=pltpu.VMEM((plan.heads, len(plan.slabs) * LANES, plan.chunk), jnp.int32) if plan.c2p else None,
        d_query=of_queries if plan.chunks > 1 else None,
        d_key=of_keys if plan.chunks > 1 else None,
        d_value=of_keys if plan.chunks > 1 else None,
    )


def _kernel(
    plan: KernelPlan,
    origin: Ref,
    chunk_segments: ChunkSegments,
    inputs: BackwardInputs[Ref],
    outputs: Gradients[Ref],
    scratch: BackwardScratch,
) -> None:
    refs = BackwardRefs(origin, chunk_segments, inputs, outputs, scratch)
    sequence, j, i = (pl.program_id(axis) for axis in (1, 2, 3))
    first = (sequence == 0) & (j == 0) & (i == 0) if plan.chunks > 1 else sequence == 0

    @pl.when(first)
    def _() -> None:
        for gradient in (outputs.key_table, outputs.query_table):
            if gradient is not None:
                gradient[...] = jnp.zeros_like(gradient)

    if plan.chunks == 1:
        added = tile_gradients(plan, refs, 0, 0, far=False)
        outputs.query[0], outputs.key[0], outputs.value[0] = (x.astype(outputs.query.dtype).T for x in added)
        return

    @pl.when((j == 0) & (i == 0))
    def _() -> None:
        scratch.d_query[...] = jnp.zeros_like(scratch.d_query)

    @pl.when(i == 0)
    def _() -> None:
        scratch.d_key[...] = jnp.zeros_like(scratch.d_key)
        scratch.d_value[...] = jnp.zeros_like(scratch.d_value)

    lowest, highest = chunk_segments
    queries, keys = sequence * plan.chunks + i, sequence * plan.chunks + j

    def add_gradients(*, far: bool) -> None:
        added = tile_gradients(plan, refs, i, j, far=far)
        scratch.d_query[:, window_slice(i * plan.chunk, 0, plan.chunk)] += added.query
        scratch.d_key[...] += added.key
        scratch.d_value[...] += added.value

    # Two chunks whose ranges of segments do not overlap see nothing of each other.
    @pl.when((lowest[queries] <= highest[keys]) & (lowest[keys] <= highest[queries]))
    def _() -> None:
        near_or_far(plan, i, j, near=lambda: add_gradients(far=False), far=lambda: add_gradients(far=True))

    @pl.when(i == plan.chunks - 1)
    def _() -> None:
        outputs.key[0] = scratch.d_key[...].astype(outputs.key.dtype).T
        outputs.value[0] = scratch.d_value[...].astype(outputs.value.dtype).T

    @pl.when((j == plan.chunks - 1) & (i == plan.chunks - 1))
    def _() -> None:
        outputs.query[0] = scratch.d_query[...].astype(outputs.query.dtype).T
