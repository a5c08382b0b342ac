"""Losses as (sum, weight): the caller divides, so that a mean over chunks, hosts or accumulation steps stays exact.

The official code averages the means of its ranks and accumulation chunks instead, which weights a token by how few
share its chunk; with one chunk the two are the same.
"""

import jax
import jax.numpy as jnp


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
    logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy with hard or soft labels.

    Args:
      logits: float32 [..., C].
      labels: int [...], negative for "no label"; or float [..., C], a distribution.
      weight: [...], 0 leaves an example out; None: all count.

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
    if weight is not None:
        counts = counts * weight
    return (losses * counts).sum(), counts.sum()


def regression(
    predictions: jax.Array, labels: jax.Array, weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Squared error. predictions and labels float [B]; weight [B] or None. Returns the sum and the weight."""
    counts = jnp.ones_like(predictions) if weight is None else weight
    return (jnp.square(predictions - labels) * counts).sum(), counts.sum()
