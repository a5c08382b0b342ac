"""Gradient accumulation: the memory of one chunk of a batch, the numbers of the whole batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Num, Shaped

from deberta_jax.errors import UserError
from deberta_jax.sharding import constrain


def check_batch_size(batch_size: int, *, accumulation: int, devices: int) -> None:
    """Raises UserError if a batch does not divide into accumulation steps over the devices."""
    if batch_size % (accumulation * devices):
        raise UserError(
            f"batch_size {batch_size} does not divide into {accumulation} accumulation steps over {devices} devices; "
            f"give a multiple of {accumulation * devices}"
        )


def accumulate(
    loss: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    batch: Any,
    key: Key[Array, ""],
    chunks: int,
    *weights: Num[Array, ""],
) -> tuple[Any, Any]:
    """Sums the gradients of `loss` over the chunks of a batch.

    Args:
      loss: loss(params, chunk, key, *weights) -> (value, auxiliary). It divides by the weights of the whole batch, so
        that the sum over chunks is the gradient of the batch's mean.
      params: the parameters to differentiate.
      batch: arrays [B, ...]; B divides by chunks.
      key: a different key is derived for each chunk.
      chunks: number of chunks; 1 for no accumulation.
      weights: passed on to `loss`.

    Returns:
      The gradients, and the auxiliary results: scalars summed, arrays [B / chunks, ...] joined to [B, ...].
    """
    gradient = jax.grad(loss, has_aux=True)
    if chunks == 1:
        return gradient(params, batch, key, *weights)

    # Chunk c takes rows c, c + chunks, ..., so that each device's rows of the batch stay on the device.
    def split(x: Shaped[Array, "B ..."]) -> Shaped[Array, "chunks rows ..."]:
        return x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]).swapaxes(0, 1)

    def join(x: Shaped[Array, "chunks ..."]) -> Shaped[Array, "..."]:
        return x.sum() if x.ndim == 1 else x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def add_chunk(total: Any, part: Any) -> tuple[Any, Any]:
        chunk, number = part
        grads, auxiliary = gradient(params, chunk, jax.random.fold_in(key, number), *weights)
        # Sharded as the optimizer's moments, so that each device keeps and adds only its part of the sum.
        return jax.tree.map(jnp.add, total, constrain(grads, moments=True)), auxiliary

    zeros = constrain(jax.tree.map(jnp.zeros_like, params), moments=True)
    grads, auxiliary = jax.lax.scan(add_chunk, zeros, (jax.tree.map(split, batch), jnp.arange(chunks)))
    return grads, jax.tree.map(join, auxiliary)
