"""The backward kernel: the weights again, and the gradients of scores and queries (FlashAttention-2, algorithm 2).

Gradients of keys and values are sums over queries, products of the two score-sized results with queries and with the
gradient of the context; XLA computes them.
"""

from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from .tile import BLOCK, SLOTS, Plan, dropped, keeps, product, rows_of, scores


class ScoreGradients(NamedTuple):
    """Result of the backward kernel.

    Attributes:
      query: gradient of the queries through the products of queries and keys, without the scale.
      scores: gradient of the scores, which is that of the bias.
      probabilities: after dropout.
    """

    query: Float[Array, "B T N H"]
    scores: Float[Array, "N B T S"]
    probabilities: Float[Array, "N B T S"]


def backward(
    plan: Plan,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    bias: Float[Array, "N B T S"],
    random: UInt32[Array, "4"],
    log_sum: Float[Array, "B N T"],
    cotangent: Float[Array, "B T N H"],
    mean: Float[Array, "B N T"],
) -> ScoreGradients:
    """Returns gradients of the scores.

    Args:
      plan, query, key, value, bias, random: as in `forward`.
      log_sum: from `forward`.
      cotangent: gradient of the context.
      mean: for each query, the product of the context and its gradient, summed over the head: the mean of the gradients
        of its probabilities.
    """
    scratch = {
        "query_smem": plan.operand(BLOCK, plan.head_size),
        "cotangent_smem": plan.operand(BLOCK, plan.head_size),
        "log_smem": plgpu.SMEM((BLOCK,), jnp.float32),
        "mean_smem": plgpu.SMEM((BLOCK,), jnp.float32),
        "key_smem": plan.operand(SLOTS, BLOCK, plan.head_size),
        "value_smem": plan.operand(SLOTS, BLOCK, plan.head_size),
        "bias_smem": plan.operand(SLOTS, BLOCK, BLOCK),
        "scores_smem": plan.operand(BLOCK, BLOCK),
        "probabilities_smem": plan.operand(BLOCK, BLOCK),
        "query_ready": plgpu.Barrier(num_arrivals=4),
        "block_ready": plgpu.Barrier(num_arrivals=3, num_barriers=SLOTS),
    }
    squares = jax.ShapeDtypeStruct((plan.heads, plan.batch, plan.queries, plan.keys), plan.dtype)
    run = plgpu.kernel(
        lambda *refs, **memory: _kernel(plan, *refs, **memory),
        out_type=[jax.ShapeDtypeStruct(query.shape, plan.dtype), squares, squares],
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plan.interpret,
        **plan.grid,
    )
    return ScoreGradients(*run(query, key, value, bias, random, log_sum, cotangent, mean))


def _kernel(
    plan: Plan,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    bias_ref: Any,
    random_ref: Any,
    log_ref: Any,
    cotangent_ref: Any,
    mean_ref: Any,
    query_gradient_ref: Any,
    scores_ref: Any,
    probabilities_ref: Any,
    *,
    query_smem: Any,
    cotangent_smem: Any,
    log_smem: Any,
    mean_smem: Any,
    key_smem: Any,
    value_smem: Any,
    bias_smem: Any,
    scores_smem: Any,
    probabilities_smem: Any,
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
    plgpu.copy_gmem_to_smem(cotangent_ref.at[sequence, queries, head], cotangent_smem, query_ready)
    plgpu.copy_gmem_to_smem(log_ref.at[sequence, head, queries], log_smem, query_ready)
    plgpu.copy_gmem_to_smem(mean_ref.at[sequence, head, queries], mean_smem, query_ready)
    for step in range(min(SLOTS, plan.key_blocks)):
        copy(step, step)
    plgpu.barrier_wait(query_ready)
    log_sum, mean = log_smem[...], mean_smem[...]

    def add_block(step: Any, query_gradient: Any) -> Any:
        slot = jax.lax.rem(step, jnp.int32(SLOTS))
        plgpu.barrier_wait(block_ready.at[slot])
        score = scores(plan, query_smem, key_smem.at[slot], bias_smem[slot])
        probabilities = jnp.exp2(score - rows_of(log_sum, BLOCK))
        gradient = product(cotangent_smem, value_smem.at[slot].transpose((1, 0)), (BLOCK, BLOCK))
        used = probabilities
        if plan.dropout_rate:
            kept = keeps(plan, random_ref, block, step)
            used, gradient = dropped(plan, kept, probabilities), dropped(plan, kept, gradient)
        gradient = (probabilities * (gradient - rows_of(mean, BLOCK))).astype(plan.dtype)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the copies of the step before have read their memory
        scores_smem[...] = gradient
        probabilities_smem[...] = used.astype(plan.dtype)
        plgpu.commit_smem()
        keys = pl.ds(step * BLOCK, BLOCK)
        plgpu.copy_smem_to_gmem(scores_smem, scores_ref.at[head, sequence, queries, keys])
        plgpu.copy_smem_to_gmem(probabilities_smem, probabilities_ref.at[head, sequence, queries, keys])
        added = product(scores_smem, key_smem.at[slot], (BLOCK, plan.head_size))

        @pl.when(step + SLOTS < plan.key_blocks)
        def _() -> None:
            copy(step + SLOTS, slot)

        return query_gradient + added

    zero = jnp.zeros((BLOCK, plan.head_size), jnp.float32)
    query_gradient = jax.lax.fori_loop(0, plan.key_blocks, add_block, zero)
    query_smem[...] = query_gradient.astype(plan.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(query_smem, query_gradient_ref.at[sequence, queries, head])
    plgpu.wait_smem_to_gmem(0)
