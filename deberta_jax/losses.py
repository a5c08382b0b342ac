"""Losses as (sum, weight): the caller divides, so that a mean over chunks, hosts or accumulation steps stays exact.

The official code averages the means of its ranks and accumulation chunks instead, which weights a token by how few
share its chunk; with one chunk the two are the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .sharding import constrain_features

# logits of some words float32 [B, M, C], the words int [C], key -> scores [B, M, C]: the highest of all words is drawn
Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
_WORDS_PER_CHUNK = 8192
_LOGITS_PER_CHUNK = 2**25  # more words where there are few slots; one chunk of all words is computed once, not twice


def masked_lm(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of the masked tokens.

    Args:
      logits: float32 [B, M, V].
      labels: int [B, M], the original ids; 0 is an unused slot (official `labels > 0`).

    Returns:
      Sum over the used slots, and their number.
    """
    used = labels > 0
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return jnp.where(used, losses, 0.0).sum(), used.sum().astype(jnp.float32)


def masked_lm_and_samples(
    hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, *, key: jax.Array, score: Score
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`masked_lm` of hidden . table + bias, and a word drawn for every slot, without keeping logits [B, M, V].

    The vocabulary is worked off in chunks, in the forward pass by an online log-sum-exp and a running maximum of the
    scores, and once more in the backward pass. Only loss_sum has a gradient.

    Args:
      hidden: [B, M, E], its dtype that of the products; table: float32 [V, E]; bias: float32 [V].
      labels: int [B, M], the original ids; 0 is an unused slot.
      key, score: see Score; logits plus Gumbel noise draw from the softmax. Each chunk gets a key of its own.

    Returns:
      Sum over the used slots, their number, in how many of them the original has the highest logit, and the samples,
      int32 [B, M].
    """
    used = labels > 0
    visited: Any = _visit_vocabulary(score, hidden, table, bias, labels, key)
    losses, correct, sampled = visited
    loss_sum = jnp.where(used, losses, 0.0).sum()
    return loss_sum, used.sum().astype(jnp.float32), (used & correct).sum().astype(jnp.float32), sampled


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _visit_vocabulary(
    score: Score, hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross entropy float32 [B, M], whether the label's logit is the highest bool [B, M], sample int32 [B, M]."""
    return _visit_forward(score, hidden, table, bias, labels, key)[0]


def _visit_forward(score: Score, hidden, table, bias, labels, key) -> tuple[tuple, tuple]:
    def visit(start: Any, size: int, carry: tuple) -> tuple:
        largest, total, own, best, sampled = carry
        words = start + jnp.arange(size)
        logits = _chunk_of_logits(hidden, table, bias, start, size)[0]
        now = jnp.maximum(largest, logits.max(axis=-1))
        total *= jnp.exp(largest - now)
        found = (
            jnp.exp(logits - now[..., None]),
            jnp.where(words == labels[..., None], logits, 0.0),
            score(logits, words, jax.random.fold_in(key, start)),
            jnp.broadcast_to(words, logits.shape),
        )
        zero, none = jnp.float32(0), jnp.float32(-jnp.inf)
        reduced = jax.lax.reduce(found, (zero, zero, none, jnp.int32(0)), _join, (logits.ndim - 1,))
        return now, *_join((total, own, best, sampled), reduced)

    zero = jnp.zeros(labels.shape, jnp.float32)
    start = (zero - jnp.inf, zero, zero, zero - jnp.inf, jnp.zeros(labels.shape, jnp.int32))
    largest, total, own, _, sampled = _in_chunks(visit, start, words=len(table), slots=labels.size)
    normalizer = largest + jnp.log(total)
    return (normalizer - own, own == largest, sampled), (hidden, table, bias, labels, normalizer)


def _visit_backward(score: Score, residuals: tuple, cotangents: tuple) -> tuple:
    del score
    hidden, table, bias, labels, normalizer = residuals
    weights = cotangents[0][..., None]

    def visit(start: Any, size: int, carry: tuple) -> tuple:
        d_hidden, d_table, d_bias = carry
        words = start + jnp.arange(size)
        logits, rows = _chunk_of_logits(hidden, table, bias, start, size)
        d_logits = weights * (jnp.exp(logits - normalizer[..., None]) - (words == labels[..., None]))
        narrow = d_logits.astype(hidden.dtype)
        d_hidden += _product("bmv,ve->bme", narrow, rows)
        d_rows = constrain_features(_product("bmv,bme->ve", narrow, hidden))
        d_table = jax.lax.dynamic_update_slice_in_dim(d_table, d_rows, start, axis=0)
        d_bias = jax.lax.dynamic_update_slice_in_dim(d_bias, d_logits.sum(axis=(0, 1)), start, axis=0)
        return d_hidden, d_table, d_bias

    start = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(table), jnp.zeros_like(bias))
    d_hidden, d_table, d_bias = _in_chunks(visit, start, words=len(table), slots=labels.size)
    return d_hidden.astype(hidden.dtype), d_table, d_bias, None, None


_visit_vocabulary.defvjp(_visit_forward, _visit_backward)


def _in_chunks(visit: Callable[[Any, int, tuple], tuple], carry: tuple, *, words: int, slots: int) -> tuple:
    """carry = visit(first word, number of words, carry) over equal chunks, and over what is left."""
    size = min(words, max(_WORDS_PER_CHUNK, _LOGITS_PER_CHUNK // slots))
    whole, rest = divmod(words, size)
    carry = jax.lax.fori_loop(0, whole, lambda number, carry: visit(number * size, size, carry), carry)
    return visit(whole * size, rest, carry) if rest else carry


def _join(one: tuple, other: tuple) -> tuple:
    """Two sums, and of two scores and their words the higher; of equal scores the smaller word.

    All of it in one reduction, so that a chunk's logits and its noise are gone through once.
    """
    second = (other[2] > one[2]) | ((other[2] == one[2]) & (other[3] < one[3]))
    best = jnp.where(second, other[2], one[2])
    return one[0] + other[0], one[1] + other[1], best, jnp.where(second, other[3], one[3])


def _chunk_of_logits(
    hidden: jax.Array, table: jax.Array, bias: jax.Array, start: Any, size: int
) -> tuple[jax.Array, jax.Array]:
    """float32 [B, M, size] of the words from start on, and their rows of the table in hidden's dtype."""
    rows = jax.lax.dynamic_slice_in_dim(table, start, size).astype(hidden.dtype)
    return _product("bme,ve->bmv", hidden, rows) + jax.lax.dynamic_slice_in_dim(bias, start, size), rows


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def replaced_token(logits: jax.Array, replaced: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Binary cross entropy over every real token, [CLS] and [SEP] included (official RTDModel).

    Args:
      logits: float32 [B, S]; replaced: [B, S], nonzero where the token is a replacement; real: [B, S], nonzero for
        real tokens.

    Returns:
      Sum over the real tokens, and their number.
    """
    losses = jnp.logaddexp(0.0, logits) - logits * (replaced != 0)
    return jnp.where(real != 0, losses, 0.0).sum(), (real != 0).sum().astype(jnp.float32)


def classification(
    logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None, *, smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy with hard or soft labels.

    Args:
      logits: float32 [..., C].
      labels: int [...], negative for "no label"; or float [..., C], a distribution.
      weight: [...], 0 leaves an example out; None: all count.
      smoothing: share of every label that is spread evenly over all classes (PyTorch's label_smoothing).

    Returns:
      Sum over what counts, and the number (or weight) of it.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        losses = -(labels * log_probabilities).sum(axis=-1)
        counts = jnp.ones_like(losses)
    else:
        losses = -jnp.take_along_axis(log_probabilities, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        counts = (labels >= 0).astype(jnp.float32)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_probabilities.mean(axis=-1)
    if weight is not None:
        counts = counts * weight
    return (losses * counts).sum(), counts.sum()


def span(
    logits: jax.Array, ends: jax.Array, choosable: jax.Array, *, smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of the first and the last token of an answer.

    Args:
      logits: float32 [B, 2, S], `sift.span_logits`: start and end, very low where a token cannot be chosen.
      ends: int [B, 2], the places of the two tokens.
      choosable: [B, S], nonzero for the tokens that can be chosen, those of `ends` among them.
      smoothing: share of every label that is spread evenly over the choosable tokens.

    Returns:
      Sum over both answers of all rows, and their number, 2 B.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_probabilities, ends[..., None], axis=-1)[..., 0]
    if smoothing:
        chosen = choosable[:, None] != 0
        means = jnp.where(chosen, log_probabilities, 0.0).sum(axis=-1) / chosen.sum(axis=-1)
        losses = (1 - smoothing) * losses - smoothing * means
    return losses.sum(), jnp.asarray(losses.size, jnp.float32)


def regression(
    predictions: jax.Array, labels: jax.Array, weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Squared error. predictions and labels float [B]; weight [B] or None. Returns the sum and the weight."""
    counts = jnp.ones_like(predictions) if weight is None else weight
    return (jnp.square(predictions - labels) * counts).sum(), counts.sum()
