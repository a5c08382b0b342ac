"""Gradients of a batch worked off in chunks: memory of one chunk, numbers of the whole batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.sharding import constrain


def accumulate(
    loss: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    batch: Any,
    key: jax.Array,
    chunks: int,
    *weights: jax.Array,
) -> tuple[Any, Any]:
    """Sums the gradients of loss(params, chunk, key, *weights) -> (value, auxiliary) over the chunks of a batch.

    The loss divides by weights of the whole batch, so the sum is the gradient of the whole batch's mean.

    Args:
      batch: arrays [B, ...]; B divides by chunks.
      chunks: 1 for no accumulation.

    Returns:
      The gradients, and the auxiliary results: scalars summed, arrays [B / chunks, ...] put together to [B, ...].
    """
    gradient = jax.grad(loss, has_aux=True)
    if chunks == 1:
        return gradient(params, batch, key, *weights)

    # Chunk c takes rows c, c + chunks, ...: each device's rows of the batch stay on the device.
    def split(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.sum() if x.ndim == 1 else x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def body(total: Any, part: Any) -> tuple[Any, Any]:
        chunk, number = part
        grads, auxiliary = gradient(params, chunk, jax.random.fold_in(key, number), *weights)
        # Where the moments lie, so that a device keeps, and adds up, no more of the sum than it needs.
        return jax.tree.map(jnp.add, total, constrain(grads, moments=True)), auxiliary

    zeros = constrain(jax.tree.map(jnp.zeros_like, params), moments=True)
    grads, auxiliary = jax.lax.scan(body, zeros, (jax.tree.map(split, batch), jnp.arange(chunks)))
    return grads, jax.tree.map(join, auxiliary)
