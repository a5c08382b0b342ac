"""The backward vocabulary kernel: gradients of hidden states, table and bias of the masked LM loss.

A grid step computes the logits of a block of words and a tile of slots again, and from them their gradient, which it
multiplies by the hidden states and by the words. The gradient of the words is complete after the tiles of a block; that
of the hidden states is kept in VMEM for all slots until the last block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from .plan import LANES
from .tiles import VMEM_LIMIT, product
from .vocabulary_plan import VocabularyPlan, WordScratch, load_words, operand_specs, read_words, word_scratch


class _Inputs(NamedTuple):
    table: Any  # [W, D]
    bias: Any  # float32 [1, W]
    hidden: Any  # [D, T]
    hidden_rows: Any  # [T, D]
    label_rows: Any  # int32 [1, T]
    normalizer: Any  # float32 [1, T]
    weights: Any  # float32 [1, T]


class VocabularyGradients(NamedTuple):
    """Gradients, float32. Also used for references to them.

    Attributes:
      hidden: [D, slots].
      table: [V, D].
      bias: [1, words], with the padding of the last block.
    """

    hidden: Any
    table: Any
    bias: Any


class _Scratch(NamedTuple):
    """VMEM: the block of words, the same transposed [D, W], and the gradient of the bias by lane, float32 [W, 128]."""

    block: WordScratch
    transposed: Any
    d_bias: Any


@functools.partial(jax.jit, static_argnums=0)
def vocabulary_backward(
    plan: VocabularyPlan,
    hidden: Float[Array, "D slots"],
    table: Float[Array, "V D"],
    bias: Float32[Array, "1 words"],
    label_rows: Int32[Array, "1 slots"],
    normalizer: Float32[Array, "1 slots"],
    weights: Float32[Array, "1 slots"],
) -> VocabularyGradients:
    """Runs the kernel.

    Args:
      plan, hidden, table, bias, label_rows: as for the forward kernel.
      normalizer: log-sum-exp of each slot's logits over the whole vocabulary.
      weights: cotangent of each slot's loss; 0 for padding.
    """
    specs = operand_specs(plan)
    shapes = ((plan.width, plan.padded_slots), (plan.vocabulary, plan.width), (1, plan.words * plan.blocks))
    return pl.pallas_call(
        functools.partial(_kernel, plan),
        name="vocabulary_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(plan.blocks, plan.tiles),
            in_specs=[
                _Inputs(
                    table=specs.table,
                    bias=specs.bias,
                    hidden=specs.hidden,
                    hidden_rows=pl.BlockSpec((plan.slots, plan.width), lambda block, tile, *_: (tile, 0)),
                    label_rows=specs.slots,
                    normalizer=specs.slots,
                    weights=specs.slots,
                )
            ],
            out_specs=[
                VocabularyGradients(
                    # Written once, at the end: a second buffer would only take VMEM.
                    pl.BlockSpec((plan.width, plan.padded_slots), lambda *_: (0, 0), pipeline_mode=pl.Buffered(1)),
                    specs.table,
                    specs.bias,
                )
            ],
            scratch_shapes=[
                _Scratch(
                    word_scratch(plan),
                    pltpu.VMEM((plan.width, plan.words), plan.dtype),
                    pltpu.VMEM((plan.words, LANES), jnp.float32),
                )
            ],
        ),
        out_shape=[VocabularyGradients(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
    )(_Inputs(table, bias, hidden, hidden.T, label_rows, normalizer, weights))[0]


def _kernel(plan: VocabularyPlan, inputs: _Inputs, gradients: VocabularyGradients, scratch: _Scratch) -> None:
    block, tile = pl.program_id(0), pl.program_id(1)

    @pl.when(tile == 0)
    def _() -> None:
        load_words(plan, block, inputs.table, inputs.bias, scratch.block)
        scratch.transposed[...] = read_words(plan, scratch.block).T

    lanes = pl.ds(pl.multiple_of(tile * plan.slots, LANES), plan.slots)
    logits = product(read_words(plan, scratch.block), inputs.hidden[...], 1, 0)
    bias = jnp.concatenate([scratch.block.bias[...]] * (plan.slots // LANES), axis=1)
    row = jax.lax.broadcasted_iota(jnp.int32, (plan.words, plan.slots), 0)
    label_row = inputs.label_rows[...] - block * plan.words
    probabilities = jnp.exp(logits + bias - inputs.normalizer[...])
    d_logits = inputs.weights[...] * jnp.where(row == label_row, probabilities - 1, probabilities)
    d_bias = sum(d_logits[:, first : first + LANES] for first in range(0, plan.slots, LANES))
    narrow = d_logits.astype(plan.dtype)
    d_table = product(narrow, inputs.hidden_rows[...], 1, 0)
    d_hidden = product(scratch.transposed[...], narrow, 1, 0)
    # A select costs less than zeros that are written in a branch of their own.
    scratch.d_bias[...] = jnp.where(tile == 0, 0, scratch.d_bias[...]) + d_bias
    gradients.table[...] = jnp.where(tile == 0, 0, gradients.table[...]) + d_table
    gradients.hidden[:, lanes] = jnp.where(block == 0, 0, gradients.hidden[:, lanes]) + d_hidden

    @pl.when(tile == plan.tiles - 1)
    def _() -> None:
        gradients.bias[...] = scratch.d_bias[...].T.sum(axis=0, keepdims=True)
