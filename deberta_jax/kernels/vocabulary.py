"""The masked LM loss over a vocabulary and a sample for every slot, as a differentiable function of one device.

    logit[slot, word] = hidden[slot] . table[word] + bias[word]

The kernels go through the vocabulary block by block. Logits, probabilities and noise exist for one block and one tile
of slots at a time, in float32 and in VMEM; the float32 table is cast to the dtype of the products there. The backward
kernel computes the logits again.

Samples are drawn by the Gumbel-max trick with `random.gumbel_noise`, which depends on the slot and on the word alone.
So on a mesh, where each device may have a part of the vocabulary, they are the same as on one device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32

from ..random import SlotSeeds
from .vocabulary_backward import VocabularyGradients, vocabulary_backward
from .vocabulary_forward import Reductions, vocabulary_forward
from .vocabulary_plan import VocabularyPlan, pad_bias, slots_per_call


class SlotResults(NamedTuple):
    """Results for every slot.

    Attributes:
      normalizer: log-sum-exp of the logits.
      label_logit: logit of the label.
      correct: whether the label has the highest logit.
      sampled: a word drawn from the softmax.
    """

    normalizer: Float32[Array, "slots"]
    label_logit: Float32[Array, "slots"]
    correct: Array
    sampled: Int32[Array, "slots"]


def visit_vocabulary(
    hidden: Float[Array, "slots D"],
    table: Float[Array, "V D"],
    bias: Float[Array, "V"],
    labels: Int[Array, "slots"],
    seeds: SlotSeeds,
    *,
    first_word: Int[Array, ""] | int = 0,
    axis: str | None = None,
) -> SlotResults:
    """Runs the forward kernel, and combines the results of devices that have other words.

    Args:
      hidden: its dtype is that of the products.
      table: float32, or already in the dtype of the products.
      labels: ids in the whole vocabulary.
      first_word: id of the table's first row in the whole vocabulary.
      axis: axis of the surrounding `shard_map` that splits the vocabulary (default: the table is whole).
    """
    label_rows, parts = _label_rows(labels, first_word, len(table)), []
    for part in _parts(*hidden.shape):
        plan = _plan(hidden[part], table, backward=False)
        reductions = vocabulary_forward(
            plan,
            jnp.asarray(first_word, jnp.int32)[None],
            _pad(plan, hidden[part].T),
            table,
            pad_bias(plan, bias),
            _pad(plan, label_rows[part][None]),
            SlotSeeds(*(_pad(plan, seed[part][None]) for seed in seeds)),
        )
        parts.append([x[:, : len(hidden[part])] for x in reductions])
    return _combine(Reductions(*(jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))), axis)


def vocabulary_gradients(
    hidden: Float[Array, "slots D"],
    table: Float[Array, "V D"],
    bias: Float[Array, "V"],
    labels: Int[Array, "slots"],
    normalizer: Float[Array, "slots"],
    weights: Float[Array, "slots"],
    *,
    first_word: Int[Array, ""] | int = 0,
) -> VocabularyGradients:
    """Runs the backward kernel: gradients of sum(weights * (normalizer - label_logit)), float32.

    Those of the hidden states [slots, D] come from the words of this device alone, those of table [V, D] and bias [V]
    from its slots alone.
    """
    label_rows, gradients = _label_rows(labels, first_word, len(table)), []
    for part in _parts(*hidden.shape):
        plan = _plan(hidden[part], table, backward=True)
        gradient = vocabulary_backward(
            plan,
            _pad(plan, hidden[part].T),
            table,
            pad_bias(plan, bias),
            _pad(plan, label_rows[part][None]),
            _pad(plan, normalizer[part][None], jnp.inf),  # no word has a probability, whatever the biases are
            _pad(plan, weights[part][None]),
        )
        gradients.append(gradient._replace(hidden=gradient.hidden[:, : len(hidden[part])].T))
    return VocabularyGradients(
        hidden=jnp.concatenate([part.hidden for part in gradients]),
        table=functools.reduce(jnp.add, (part.table for part in gradients)),
        bias=functools.reduce(jnp.add, (part.bias for part in gradients))[0, : len(bias)],
    )


def _plan(hidden: Float[Array, "slots D"], table: Float[Array, "V D"], *, backward: bool) -> VocabularyPlan:
    slots, width = hidden.shape
    return VocabularyPlan.create(vocabulary=len(table), slots=slots, width=width, dtype=hidden.dtype, backward=backward)


def _parts(slots: int, width: int) -> list[slice]:
    """Splits the slots into equal parts, but for the last one, that each fit into one call."""
    calls = -(-slots // slots_per_call(width))
    size = -(-slots // calls)
    return [slice(start, min(start + size, slots)) for start in range(0, slots, size)]


def _label_rows(labels: Int[Array, "slots"], first_word: Int[Array, ""] | int, words: int) -> Int32[Array, "slots"]:
    """Returns the row of each label in the table, -1 if it has none: the last block may have rows after the table."""
    rows = labels.astype(jnp.int32) - first_word
    return jnp.where(rows < words, rows, -1)


def _pad(plan: VocabularyPlan, x: Array, value: float = 0) -> Array:
    """Pads the last axis, that of the slots."""
    return jnp.pad(x, ((0, 0), (0, plan.padded_slots - x.shape[1])), constant_values=value)


def _combine(reductions: Reductions, axis: str | None) -> SlotResults:
    """Reduces over the eight sublanes, and over the devices of a mesh axis."""
    local = reductions.maximum.max(axis=0)
    maximum = local if axis is None else jax.lax.pmax(local, axis)
    total = (reductions.total * jnp.exp(reductions.maximum - maximum)).sum(axis=0)
    label_logit = reductions.label_logit.sum(axis=0)
    best_score = reductions.best_score.max(axis=0)
    if axis is not None:
        total, label_logit = jax.lax.psum((total, label_logit), axis)
        best_score = jax.lax.pmax(best_score, axis)
    # Of equal scores that of the smaller word is drawn.
    words = jnp.where(reductions.best_score == best_score, reductions.best_word, jnp.iinfo(jnp.int32).max)
    sampled = words.min(axis=0)
    if axis is not None:
        sampled = jax.lax.pmin(sampled, axis)
    return SlotResults(maximum + jnp.log(total), label_logit, label_logit == maximum, sampled)
