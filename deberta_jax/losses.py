"""Losses as a sum and a weight: the caller divides, so that means over chunks, hosts and accumulation steps are exact.

The official code averages the means of its ranks and accumulation chunks instead, so a token weighs more in a chunk
with few tokens. With one chunk the two are equal.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from .sharding import constrain_features, current_device_kind

# Maps the logits of some words, the ids of these words and a random key to scores. The word with the highest score of
# the whole vocabulary is drawn. Every part of the vocabulary has the same key, so noise has to depend on the ids.
Sampler = Callable[[Float[Array, "B M words"], Int[Array, "words"], Array], Float[Array, "B M words"]]

# The vocabulary is processed in chunks of at least this many words, and of more if there are few slots: a single chunk
# is computed once, several are computed again in the backward pass.
_WORDS_PER_CHUNK = 8192
_LOGITS_PER_CHUNK = 2**25


class LossSum(NamedTuple):
    """A loss, summed over the examples or tokens that count, and their number (or total weight)."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


class MaskedLMPass(NamedTuple):
    """Masked LM loss over the used slots, with a sample for every slot."""

    loss_sum: Float[Array, ""]
    weight: Float[Array, ""]  # number of used slots
    correct: Float[Array, ""]  # number of used slots in which the original word has the highest logit
    sampled: Int[Array, "B M"]


def masked_lm(logits: Float[Array, "B M V"], labels: Int[Array | np.ndarray, "B M"]) -> LossSum:
    """Computes the cross entropy of the masked tokens.

    Args:
      labels: the original ids; 0 marks an unused slot (official `labels > 0`).

    Returns:
      The sum over the used slots, and their number.
    """
    used = labels > 0
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return LossSum(jnp.where(used, losses, 0.0).sum(), used.sum().astype(jnp.float32))


def masked_lm_and_samples(
    hidden: Float[Array, "B M embedding"],
    table: Float[Array, "V embedding"],
    bias: Float[Array, "V"],
    labels: Int[Array | np.ndarray, "B M"],
    *,
    key: Array,
    sampler: Sampler,
) -> MaskedLMPass:
    """Computes `masked_lm` of hidden · table + bias and draws a word for every slot, without keeping logits [B, M, V].

    The forward pass goes through the vocabulary in chunks, with an online log-sum-exp and a running maximum of the
    scores; the backward pass computes the logits of each chunk again. Only loss_sum has a gradient.

    Args:
      hidden: its dtype is that of the products; table and bias are float32.
      labels: the original ids; 0 marks an unused slot.
      sampler: see `Sampler`. Logits plus Gumbel noise draw from the softmax.
    """
    visited: Any = _visit_vocabulary(sampler, hidden, table, bias, labels, key)
    losses, correct, sampled = visited
    return sum_used_slots(labels, losses, correct, sampled)


def sum_used_slots(
    labels: Int[Array | np.ndarray, "B M"],
    losses: Float[Array, "B M"],
    correct: Bool[Array, "B M"],
    sampled: Int[Array, "B M"],
) -> MaskedLMPass:
    """Sums the losses and the correct slots over the used ones."""
    used = labels > 0
    loss_sum = jnp.where(used, losses, 0.0).sum()
    return MaskedLMPass(loss_sum, used.sum().astype(jnp.float32), (used & correct).sum().astype(jnp.float32), sampled)


class _Running(NamedTuple):
    """Reductions over the words visited so far, each [B, M]; over the words of a chunk before `_reduce`."""

    total: jax.Array  # sum of exp(logit - largest)
    label_logit: jax.Array  # logit of the label, 0 before it is visited
    best_score: jax.Array
    sampled: jax.Array  # word of the best score


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _visit_vocabulary(
    sampler: Sampler,
    hidden: Float[Array, "B M embedding"],
    table: Float[Array, "V embedding"],
    bias: Float[Array, "V"],
    labels: Int[Array | np.ndarray, "B M"],
    key: Array,
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"], Int[Array, "B M"]]:
    """Returns the cross entropy, whether the label's logit is the highest, and the sample of each slot."""
    return _visit_forward(sampler, hidden, table, bias, labels, key)[0]


def _visit_forward(sampler: Sampler, hidden, table, bias, labels, key) -> tuple[tuple, tuple]:
    def visit(start: Any, size: int, carry: tuple) -> tuple:
        largest, running = carry
        words = start + jnp.arange(size)
        logits = _chunk_of_logits(hidden, table, bias, start, size)[0]
        new_largest = jnp.maximum(largest, logits.max(axis=-1))
        running = running._replace(total=running.total * jnp.exp(largest - new_largest))
        chunk = _Running(
            jnp.exp(logits - new_largest[..., None]),
            jnp.where(words == labels[..., None], logits, 0.0),
            sampler(logits, words, key),
            jnp.broadcast_to(words, logits.shape),
        )
        return new_largest, _combine(running, _reduce(chunk))

    zero = jnp.zeros(labels.shape, jnp.float32)
    start = (zero - jnp.inf, _Running(zero, zero, zero - jnp.inf, jnp.zeros(labels.shape, jnp.int32)))
    largest, running = _in_chunks(visit, start, words=len(table), slots=labels.size)
    normalizer = largest + jnp.log(running.total)
    results = (normalizer - running.label_logit, running.label_logit == largest, running.sampled)
    return results, (hidden, table, bias, labels, normalizer)


def _visit_backward(sampler: Sampler, residuals: tuple, cotangents: tuple) -> tuple:
    del sampler
    hidden, table, bias, labels, normalizer = residuals
    weights = cotangents[0][..., None]

    def visit(start: Any, size: int, carry: tuple) -> tuple:
        d_hidden, d_table, d_bias = carry
        words = start + jnp.arange(size)
        logits, embeddings = _chunk_of_logits(hidden, table, bias, start, size)
        d_logits = weights * (jnp.exp(logits - normalizer[..., None]) - (words == labels[..., None]))
        narrow = d_logits.astype(hidden.dtype)
        d_hidden += _product("bmv,vd->bmd", narrow, embeddings)
        d_embeddings = constrain_features(_product("bmv,bmd->vd", narrow, hidden))
        d_table = jax.lax.dynamic_update_slice_in_dim(d_table, d_embeddings, start, axis=0)
        d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, d_logits.sum(axis=(0, 1)), start, axis=0)
        return d_hidden, d_table, d_bias

    start = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(table), jnp.zeros_like(bias))
    d_hidden, d_table, d_bias = _in_chunks(visit, start, words=len(table), slots=labels.size)
    return d_hidden.astype(hidden.dtype), d_table, d_bias, None, None


_visit_vocabulary.defvjp(_visit_forward, _visit_backward)


def _in_chunks(visit: Callable[[Any, int, tuple], tuple], carry: tuple, *, words: int, slots: int) -> tuple:
    """Folds carry = visit(first word, number of words, carry) over equal chunks, and over a smaller last one."""
    size = min(words, max(_WORDS_PER_CHUNK, _LOGITS_PER_CHUNK // slots))
    chunks, remainder = divmod(words, size)
    carry = jax.lax.fori_loop(0, chunks, lambda number, carry: visit(number * size, size, carry), carry)
    return visit(chunks * size, remainder, carry) if remainder else carry


def _reduce(chunk: _Running) -> _Running:
    """Reduces arrays [B, M, words], with the words in ascending order, to [B, M]."""
    axis = chunk.total.ndim - 1
    if current_device_kind() == "cpu":
        # XLA's code for a reduction of several arrays handles one element at a time on a CPU. The barrier keeps it from
        # computing the noise of the scores twice.
        scores = jax.lax.optimization_barrier(chunk.best_score)
        best = scores.max(axis)
        best_words = jnp.where(scores == best[..., None], chunk.sampled, chunk.sampled[..., -1:])
        return _Running(chunk.total.sum(axis), chunk.label_logit.sum(axis), best, best_words.min(axis))
    zero, lowest = jnp.float32(0), jnp.float32(-jnp.inf)
    # A single reduction of all four, so that a chunk's logits and noise are read once.
    reduced = jax.lax.reduce(tuple(chunk), (zero, zero, lowest, jnp.int32(0)), _combine_tuples, (axis,))
    return _Running(*reduced)


def _combine(first: _Running, second: _Running) -> _Running:
    """Adds the sums and keeps the better score with its word; of equal scores that of the smaller word."""
    takes_second = (second.best_score > first.best_score) | (
        (second.best_score == first.best_score) & (second.sampled < first.sampled)
    )
    return _Running(
        first.total + second.total,
        first.label_logit + second.label_logit,
        jnp.where(takes_second, second.best_score, first.best_score),
        jnp.where(takes_second, second.sampled, first.sampled),
    )


def _combine_tuples(first: tuple, second: tuple) -> tuple:
    """`_combine` for `jax.lax.reduce`, which passes and expects plain tuples."""
    return tuple(_combine(_Running(*first), _Running(*second)))


def _chunk_of_logits(
    hidden: Float[Array, "B M embedding"],
    table: Float[Array, "V embedding"],
    bias: Float[Array, "V"],
    start: Any,
    size: int,
) -> tuple[Float[Array, "B M words"], Float[Array, "words embedding"]]:
    """Returns the float32 logits of `size` words from word `start` on, and their embeddings in hidden's dtype."""
    embeddings = jax.lax.dynamic_slice_in_dim(table, start, size).astype(hidden.dtype)
    logits = _product("bmd,vd->bmv", hidden, embeddings) + jax.lax.dynamic_slice_in_dim(bias, start, size)
    return logits, embeddings


def _product(spec: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def replaced_token(
    logits: Float[Array, "B S"], replaced: Shaped[Array | np.ndarray, "B S"], real: Shaped[Array | np.ndarray, "B S"]
) -> LossSum:
    """Computes the binary cross entropy over every real token, [CLS] and [SEP] included (official RTDModel).

    Args:
      replaced: nonzero where the token is a replacement.
      real: nonzero for real tokens, 0 for padding.

    Returns:
      The sum over the real tokens, and their number.
    """
    losses = jnp.logaddexp(0.0, logits) - logits * (replaced != 0)
    return LossSum(jnp.where(real != 0, losses, 0.0).sum(), (real != 0).sum().astype(jnp.float32))


def classification(
    logits: Float[Array, "*examples C"],
    labels: Int[Array | np.ndarray, "*examples"] | Float[Array | np.ndarray, "*examples C"],
    weight: Shaped[Array | np.ndarray, "*examples"] | None = None,
    *,
    smoothing: float = 0.0,
    class_weights: Float[Array | np.ndarray, "C"] | None = None,
    focal_gamma: float = 0.0,
) -> LossSum:
    """Computes the cross entropy with hard or soft labels, or the focal loss.

    Args:
      labels: class indices, negative for no label; or the probabilities of the classes.
      weight: weight of each example, 0 to ignore it (default: all 1).
      smoothing: share of every label that is spread evenly over all classes (PyTorch's label_smoothing).
      class_weights: weight of each class (default: all 1). As PyTorch's `weight`, an example with a class index counts
        as much as its class weighs.
      focal_gamma: exponent of the focal loss, (1 - p)^gamma in front of -log p (Lin et al. 2017, "Focal loss for dense
        object detection"); 0 is the cross entropy.

    Returns:
      The sum over the examples that count, and their number or total weight.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    costs = -log_probabilities * _focal_factor(log_probabilities, focal_gamma)
    costs = costs if class_weights is None else costs * class_weights
    if jnp.issubdtype(labels.dtype, jnp.floating):
        losses = (labels * costs).sum(axis=-1)
        counts = shares = jnp.ones_like(losses)
    else:
        indices = jnp.maximum(labels, 0)
        losses = jnp.take_along_axis(costs, indices[..., None], axis=-1)[..., 0]
        counts = (labels >= 0).astype(jnp.float32)
        shares = counts if class_weights is None else counts * jnp.asarray(class_weights)[indices]
    if smoothing:
        losses = (1 - smoothing) * losses + smoothing * costs.mean(axis=-1)
    if weight is not None:
        counts, shares = counts * weight, shares * weight
    return LossSum((losses * counts).sum(), shares.sum())


def _focal_factor(log_probabilities: Float[Array, "*shape"], gamma: float) -> Float[Array, "*shape"] | float:
    """Returns (1 - p)^gamma. The difference is kept above 0, where the gradient of a root is infinite."""
    return jnp.maximum(-jnp.expm1(log_probabilities), 1e-12) ** gamma if gamma else 1.0


def binary(
    logits: Float[Array, "*examples C"],
    labels: Float[Array | np.ndarray, "*examples C"],
    *,
    smoothing: float = 0.0,
    positive_weights: Float[Array | np.ndarray, "C"] | None = None,
    focal_gamma: float = 0.0,
) -> LossSum:
    """Computes the cross entropy of a sigmoid for each of C classes, or the focal loss; an example has their mean.

    Args:
      labels: 0 or 1, or the probability of 1.
      smoothing: share of every label that is spread evenly over 0 and 1.
      positive_weights: factor of the loss where the label is 1 (default: all 1; PyTorch's `pos_weight`).
      focal_gamma: see `classification`.

    Returns:
      The sum over the examples, and their number.
    """
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    labels = (1 - smoothing) * labels + smoothing / 2
    positive = -labels * yes * _focal_factor(yes, focal_gamma)
    positive = positive if positive_weights is None else positive * positive_weights
    losses = (positive - (1 - labels) * no * _focal_factor(no, focal_gamma)).mean(axis=-1)
    return LossSum(losses.sum(), jnp.asarray(losses.size, jnp.float32))


def pairwise(chosen: Float[Array, "B"], rejected: Float[Array, "B"], *, smoothing: float = 0.0) -> LossSum:
    """Computes -log sigmoid(chosen - rejected), the loss of a reward model (Ouyang et al. 2022, equation 1).

    Args:
      chosen: the scores of the better answers.
      rejected: the scores of the worse answers.
      smoothing: share of every preference that is spread evenly over both answers.

    Returns:
      The sum over the pairs, and their number.
    """
    margin = chosen - rejected
    losses = -jax.nn.log_sigmoid(margin) + 0.5 * smoothing * margin
    return LossSum(losses.sum(), jnp.asarray(losses.size, jnp.float32))


def span(
    logits: Float[Array, "B 2 S"],
    ends: Int[Array | np.ndarray, "B 2"],
    choosable: Shaped[Array | np.ndarray, "B S"],
    *,
    smoothing: float = 0.0,
) -> LossSum:
    """Computes the cross entropy of the first and the last token of an answer.

    Args:
      logits: start and end logits from `sift.span_logits`, very low where a token cannot be chosen.
      ends: positions of the first and the last token.
      choosable: nonzero for the tokens that can be chosen, those of `ends` among them.
      smoothing: share of every label that is spread evenly over the choosable tokens.

    Returns:
      The sum over both ends of all rows, and their number, 2 B.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_probabilities, ends[..., None], axis=-1)[..., 0]
    if smoothing:
        chosen = choosable[:, None] != 0
        means = jnp.where(chosen, log_probabilities, 0.0).sum(axis=-1) / chosen.sum(axis=-1)
        losses = (1 - smoothing) * losses - smoothing * means
    return LossSum(losses.sum(), jnp.asarray(losses.size, jnp.float32))


def regression(
    predictions: Float[Array, "B"],
    labels: Float[Array | np.ndarray, "B"],
    weight: Shaped[Array | np.ndarray, "B"] | None = None,
) -> LossSum:
    """Computes the squared error.

    Args:
      weight: weight of each example, 0 to ignore it (default: all 1).

    Returns:
      The sum, and the number or total weight of the examples.
    """
    counts = jnp.ones_like(predictions) if weight is None else weight
    return LossSum((jnp.square(predictions - labels) * counts).sum(), counts.sum())
