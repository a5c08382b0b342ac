"""The official optimizer as one optax chain, and its schedules (official `xadam.py`, `lr_schedulers.py`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from deberta_jax.errors import UserError
from deberta_jax.sharding import constrain

from ..configs import OptimizerConfig


def build_optimizer(config: OptimizerConfig, *, total_steps: int) -> optax.GradientTransformation:
    """clip -> Adam -> decay -> schedule. The learning rate of update n (from 0) is learning_rate * schedule(n)."""
    multiplier = schedule(config, total_steps=total_steps)
    adam = (
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
        if config.bias_correction
        else scale_by_uncorrected_adam(config.beta1, config.beta2, config.epsilon)
    )
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity(),
        adam,
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: decay_mask(params, deltas=config.decay_embedding_delta)
        ),
        optax.scale_by_learning_rate(lambda step: config.learning_rate * multiplier(step)),
    )


def apply_gradients(
    optimizer: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, jax.Array]:
    """One update, inside jit -> the new parameters, the optimizer's new state, the norm of the gradients.

    On a mesh every device updates the part of the parameters whose moments it has: gradients are summed where the
    moments lie (with the axis `zero` a reduce-scatter), and the new parameters are gathered from there.
    """
    grads = constrain(grads, moments=True)
    shards = constrain(params, moments=True)
    updates, opt_state = optimizer.update(grads, opt_state, shards)
    params = constrain(optax.apply_updates(shards, updates), moments=False)
    return params, opt_state, optax.global_norm(grads)


class UncorrectedAdamState(NamedTuple):
    mean: Any
    square: Any


def scale_by_uncorrected_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + epsilon) with plain moving averages. Without bias correction early steps are larger."""

    def init(params: Any) -> UncorrectedAdamState:
        return UncorrectedAdamState(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, UncorrectedAdamState]:
        del params
        mean = optax.tree.update_moment(updates, state.mean, beta1, 1)
        square = optax.tree.update_moment(updates, state.square, beta2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mean, square)
        return updates, UncorrectedAdamState(mean, square)

    return optax.GradientTransformation(init, update)


def decay_mask(params: Any, *, deltas: bool = False) -> Any:
    """True where weight decay applies: everything but biases and LayerNorm scales (and GDES deltas unless asked)."""
    spared = {"bias", "scale"} | (set() if deltas else {"delta"})
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in spared, params)


def schedule(config: OptimizerConfig, *, total_steps: int) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """The multiplier of the learning rate at each step, counted from 0.

    Every schedule starts at 0, so the first update changes nothing but the moments, and past the last step it starts
    anew: both are the original's. "warmup_linear" falls from 1 to 1 - warmup where the warmup ends;
    "warmup_linear_shift", our default, comes down from 1 without that jump.
    """
    if total_steps < 1:
        raise UserError(f"total_steps is {total_steps}; it must be at least 1")
    end = config.schedule_end
    warmup = config.warmup / total_steps if config.warmup >= 1 else config.warmup
    if warmup >= 1:
        raise UserError(f"warmup of {config.warmup:g} steps does not fit into {total_steps} steps; give fewer")

    def after_warmup(x: jax.Array) -> jax.Array:
        left = (1 - x) / (1 - warmup)
        match config.schedule:
            case "warmup_linear":
                return (1 - end) * (1 - x) + end
            case "warmup_linear_shift":
                return (1 - end) * left + end
            case "warmup_cosine":
                return 0.5 * (1 + jnp.cos(jnp.pi * x))
            case "warmup_linear_cosine":
                return 0.5 * (1 + jnp.cos(jnp.pi * (1 - left)))
            case "warmup_constant":
                return jnp.ones_like(x)

    def multiplier(step: jax.typing.ArrayLike) -> jax.Array:
        x = jnp.mod(jnp.asarray(step), total_steps) / total_steps
        return jnp.where(x < warmup, x / max(warmup, 1e-12), after_warmup(x))

    return multiplier
