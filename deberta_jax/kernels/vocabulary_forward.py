"""The forward vocabulary kernel: log-sum-exp, logit of the label and a sample of every slot, without logits in HBM.

A grid step multiplies a block of words by a tile of slots. Logits are stored as [words, slots], and every reduction
over words is kept as eight rows, one for each sublane of a vector register: so the kernel reduces register by register,
and never within one. What is left, eight numbers a slot, is reduced outside.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from ..random import GOLDEN_RATIO, SlotSeeds, gumbel_of_mixed
from .operands import Ref
from .plan import LANES
from .tiles import VMEM_LIMIT, product
from .vocabulary_plan import SUBLANES, VocabularyPlan, WordScratch, load_words, operand_specs, read_words, word_scratch

_ROWS_AT_ONCE = 8  # rows of eight words; a block is a multiple of them
_LANES_AT_ONCE = 256  # of a tile: the product of one part runs beside the reductions of another


class Reductions(NamedTuple):
    """Reductions over the words of each of the eight sublanes, [8, slots]. Also used for references to them.

    Attributes:
      maximum: highest logit.
      total: sum of exp(logit - maximum).
      label_logit: logit of the label; 0 where the label is not among the words.
      best_score: highest sum of logit and noise.
      best_word: word of the best score, the smallest of several.
    """

    maximum: Any
    total: Any
    label_logit: Any
    best_score: Any
    best_word: Any


_NOTHING = Reductions(-np.inf, 0.0, 0.0, -np.inf, 0)  # reductions over no words


class _Inputs(NamedTuple):
    table: Any  # [W, D]
    bias: Any  # float32 [1, W]
    hidden: Any  # [D, T]
    label_rows: Any  # int32 [1, T]
    seeds: Any  # SlotSeeds of int32 [1, T]


@functools.partial(jax.jit, static_argnums=0)
def vocabulary_forward(
    plan: VocabularyPlan,
    first_word: Int32[Array, "1"],
    hidden: Float[Array, "D slots"],
    table: Float[Array, "V D"],
    bias: Float32[Array, "1 words"],
    label_rows: Int32[Array, "1 slots"],
    seeds: SlotSeeds,
) -> Reductions:
    """Runs the kernel.

    Args:
      plan: of the call.
      first_word: id of the table's first row in the whole vocabulary.
      hidden: padded to the plan's slots, as the following arrays.
      table: float32, or in the dtype of the products.
      bias: from `pad_bias`.
      label_rows: row of each label in the table, or a negative number.
      seeds: int32 [1, slots] each.
    """
    specs = operand_specs(plan)
    whole = pl.BlockSpec((SUBLANES, plan.padded_slots), lambda *_: (0, 0))
    shapes = (jax.ShapeDtypeStruct((SUBLANES, plan.padded_slots), kind) for kind in (jnp.float32,) * 4 + (jnp.int32,))
    return pl.pallas_call(
        functools.partial(_kernel, plan),
        name="vocabulary_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.blocks, plan.tiles),
            in_specs=[
                _Inputs(
                    table=specs.table,
                    bias=specs.bias,
                    hidden=specs.hidden,
                    label_rows=specs.slots,
                    seeds=SlotSeeds(specs.slots, specs.slots),
                )
            ],
            out_specs=[Reductions(*(whole,) * 5)],
            scratch_shapes=[word_scratch(plan)],
        ),
        out_shape=[Reductions(*shapes)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
    )(first_word, _Inputs(table, bias, hidden, label_rows, seeds))[0]


def _kernel(plan: VocabularyPlan, first_word: Ref, inputs: _Inputs, results: Reductions, scratch: WordScratch) -> None:
    block, tile = pl.program_id(0), pl.program_id(1)

    @pl.when(tile == 0)
    def _() -> None:
        load_words(plan, block, inputs.table, inputs.bias, scratch)

    words = read_words(plan, scratch)
    for first in range(0, plan.slots, _LANES_AT_ONCE):
        size = min(_LANES_AT_ONCE, plan.slots - first)
        lanes, part = pl.ds(pl.multiple_of(tile * plan.slots + first, LANES), size), slice(first, first + size)
        before = Reductions(
            *(jnp.where(block == 0, value, result[:, lanes]) for value, result in zip(_NOTHING, results, strict=True))
        )
        logits = product(words, inputs.hidden[:, part], 1, 0)
        after = _reduce(
            plan,
            first_word[0] + block * plan.words,
            logits,
            scratch.bias,
            inputs.label_rows[:, part] - block * plan.words,
            SlotSeeds(*(seed[:, part] for seed in inputs.seeds)),
            before,
        )
        for result, value in zip(results, after, strict=True):
            result[:, lanes] = value


def _reduce(
    plan: VocabularyPlan,
    start: Int32[Array, ""],
    logits: Float32[Array, "words slots"],
    bias: Ref,
    label_rows: Int32[Array, "1 slots"],
    seeds: SlotSeeds,
    state: Reductions,
) -> Reductions:
    """Takes the logits of a block, without their bias, into the reductions of a part of a tile.

    Args:
      start: id of the block's first word in the whole vocabulary.
      label_rows: row of each label in the block, or a number outside of it.
    """
    size, rows = logits.shape[1], plan.words // SUBLANES
    shape = (_ROWS_AT_ONCE, SUBLANES, size)
    number = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    sublane = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, size), 0)
    # Word of row r and sublane s: start + 8 r + s. What depends on the sublane and the slot alone is computed once.
    label_row = label_rows - sublane
    mixed = number * _times_golden_ratio(SUBLANES) + ((start + sublane) * GOLDEN_RATIO + seeds.first)
    second = jnp.broadcast_to(seeds.second, (SUBLANES, size))
    groups, maximum = {}, state.maximum
    for first in range(0, rows, _ROWS_AT_ONCE):
        words = slice(first * SUBLANES, (first + _ROWS_AT_ONCE) * SUBLANES)
        wide = jnp.concatenate([bias[words]] * (size // LANES), axis=1)
        groups[first] = (logits[words] + wide).reshape(shape)
        maximum = jnp.maximum(maximum, groups[first].max(axis=0))
    total, label_logit = state.total * jnp.exp(state.maximum - maximum), state.label_logit
    best_score, best_row = state.best_score, jnp.full((SUBLANES, size), -1, jnp.int32)
    for first, logit in groups.items():
        total += jnp.exp(logit - maximum).sum(axis=0)
        label_logit += jnp.where(SUBLANES * number == label_row - first * SUBLANES, logit, 0).sum(axis=0)
        score = logit + gumbel_of_mixed(mixed + _times_golden_ratio(first * SUBLANES), second)
        for index in range(_ROWS_AT_ONCE):
            better = score[index] > best_score
            best_score = jnp.where(better, score[index], best_score)
            best_row = jnp.where(better, first + index, best_row)
    best_word = jnp.where(best_row < 0, state.best_word, start + sublane + SUBLANES * best_row)
    return Reductions(maximum, total, label_logit, best_score, best_word)


def _times_golden_ratio(row: int) -> np.int32:
    """Returns row * GOLDEN_RATIO modulo 2^32."""
    return np.uint32(row * int(GOLDEN_RATIO) % 2**32).astype(np.int32)
