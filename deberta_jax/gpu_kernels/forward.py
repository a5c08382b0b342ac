"""The forward kernel: softmax over blocks of keys with a running maximum (FlashAttention, algorithm 1)."""

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from .tile import BLOCK, SLOTS, Plan, dropped, keeps, product, rows_of, scores

_LOWEST = -3e38  # below the bias of a key that a query does not see, so that even a query that sees none has weights


def forward(
    plan: Plan,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    bias: Float[Array, "N B T S"],
    random: UInt32[Array, "4"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Returns the context and the logarithm of the sum of the weights, to base 2."""
    scratch = {
        "query_smem": plan.operand(BLOCK, plan.head_size),
        "key_smem": plan.operand(SLOTS, BLOCK, plan.head_size),
        "value_smem": plan.operand(SLOTS, BLOCK, plan.head_size),
        "bias_smem": plan.operand(SLOTS, BLOCK, BLOCK),
        "context_smem": plan.operand(BLOCK, plan.head_size),
        "log_smem": plgpu.SMEM((BLOCK,), jnp.float32),
        "query_ready": plgpu.Barrier(),
        "block_ready": plgpu.Barrier(num_arrivals=3, num_barriers=SLOTS),
    }
    run = plgpu.kernel(
        lambda *refs, **memory: _kernel(plan, *refs, **memory),
        out_type=[
            jax.ShapeDtypeStruct(query.shape, plan.dtype),
            jax.ShapeDtypeStruct((plan.batch, plan.heads, plan.queries), jnp.float32),
        ],
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plan.interpret,
        **plan.grid,
    )
    context, log_sum = run(query, key, value, bias, random)
    return context, log_sum


def _kernel(
    plan: Plan,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    bias_ref: Any,
    random_ref: Any,
    context_ref: Any,
    log_ref: Any,
    *,
    query_smem: Any,
    key_smem: Any,
    value_smem: Any,
    bias_smem: Any,
    context_smem: Any,
    log_smem: Any,
    query_ready: Any,
    block_ready: Any,
) -> None:
    head, block, sequence = (jax.lax.axis_index(name) for name in ("head", "block", "sequence"))
    queries = pl.ds(block * BLOCK, BLOCK)

    def copy(step: Any, slot: Any) -> None:
        keys = pl.ds(step * BLOCK, BLOCK)
        plgpu.copy_gmem_to_smem(key_ref.at[sequence, keys, head], key_smem.at[slot], block_ready.at[slot])
        plgpu.copy_gmem_to_smem(value_ref.at[sequence, keys, head], value_smem.at[slot], block_ready.at[slot])
        plgpu.copy_gmem_to_smem(bias_ref.at[head, sequence, queries, keys], bias_smem.at[slot], block_ready.at[slot])

    plgpu.copy_gmem_to_smem(query_ref.at[sequence, queries, head], query_smem, query_ready)
    for step in range(min(SLOTS, plan.key_blocks)):
        copy(step, step)
    plgpu.barrier_wait(query_ready)

    def add_block(step: Any, carry: Any) -> Any:
        context, maximum, total = carry
        slot = jax.lax.rem(step, jnp.int32(SLOTS))
        plgpu.barrier_wait(block_ready.at[slot])
        score = scores(plan, query_smem, key_smem.at[slot], bias_smem[slot])
        new_maximum = jnp.maximum(maximum, score.max(axis=1))
        shrink = jnp.exp2(maximum - new_maximum)
        weights = jnp.exp2(score - rows_of(new_maximum, BLOCK))
        total = total * shrink + weights.sum(axis=1)
        if plan.dropout_rate:
            weights = dropped(plan, keeps(plan, random_ref, block, step), weights)
        added = product(weights.astype(plan.dtype), value_smem.at[slot], (BLOCK, plan.head_size))
        context = context * rows_of(shrink, plan.head_size) + added

        @pl.when(step + SLOTS < plan.key_blocks)
        def _() -> None:
            copy(step + SLOTS, slot)

        return context, new_maximum, total

    start = (
        jnp.zeros((BLOCK, plan.head_size), jnp.float32),
        jnp.full((BLOCK,), _LOWEST, jnp.float32),
        jnp.zeros((BLOCK,), jnp.float32),
    )
    context, maximum, total = jax.lax.fori_loop(0, plan.key_blocks, add_block, start)
    context_smem[...] = (context / rows_of(total, plan.head_size)).astype(plan.dtype)
    log_smem[...] = maximum + jnp.log2(total)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(context_smem, context_ref.at[sequence, queries, head])
    plgpu.copy_smem_to_gmem(log_smem, log_ref.at[sequence, head, queries])
    plgpu.wait_smem_to_gmem(0)
