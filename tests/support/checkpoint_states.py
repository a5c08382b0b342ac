"""Training states to checkpoint, and the shapes to restore them by."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

IDENTITY = {
    "model": {"num_hidden_layers": 6, "conv_act": None},
    "tokenizer": "ab12",
    "optimizer": {"betas": (0.9, 0.98)},
}


def make_state(value: int, *, size: int = 300) -> Any:
    """Returns a state of which every leaf holds `value`, with all dtypes of a training state and optax's containers."""
    params = {
        "dense": {"kernel": jnp.full((size, 40), value, jnp.float32), "bias": jnp.full((7,), value, jnp.bfloat16)}
    }
    moments = optax.adamw(1e-3).init(params)
    moments = jax.tree.map(lambda x: jnp.full_like(x, value), moments)
    return {"params": params, "moments": moments, "step": jnp.int32(value), "rng": jnp.full((2,), value, jnp.uint32)}


def noise(seed: int) -> Any:
    """Returns 1.2 MB that hardly compress."""
    return {"kernel": jax.random.normal(jax.random.key(seed), (300_000,))}


def abstract(state: Any) -> Any:
    """Returns the shapes, dtypes and shardings of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
