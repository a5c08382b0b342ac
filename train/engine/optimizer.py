"""The official optimizer as one optax chain, and its schedules (official `xadam.py`, `lr_schedulers.py`)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from deberta_jax.errors import UserError
from deberta_jax.sharding import constrain

from ..configs import OptimizerConfig
from .narrow_moments import with_bfloat16_moments


def build_optimizer(config: OptimizerConfig, *, total_steps: int) -> optax.GradientTransformation:
    """Returns clipping, Adam, weight decay and schedule in one chain (official `xadam.py`).

    The learning rate of update n (from 0) is `config.learning_rate * schedule(config, total_steps=total_steps)(n)`.

    Raises:
      UserError: if the warmup is longer than `total_steps`.
    """
    multiplier = schedule(config, total_steps=total_steps)
    adam = (
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
        if config.bias_correction
        else scale_by_uncorrected_adam(config.beta1, config.beta2, config.epsilon)
    )
    if config.moment_dtype == "bfloat16":
        adam = with_bfloat16_moments(adam)
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity(),
        adam,
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: decay_mask(params, deltas=config.decay_embedding_delta)
        ),
        optax.scale_by_learning_rate(lambda step: config.learning_rate * multiplier(step)),
    )


def optimizer_identity(config: OptimizerConfig) -> dict[str, Any]:
    """Returns the settings that a checkpoint and the run that resumes it must have in common.

    Checkpoints of earlier versions have no moment_dtype, which was float32.
    """
    settings = dataclasses.asdict(config)
    if config.moment_dtype == "float32":
        del settings["moment_dtype"]
    return settings


class Update(NamedTuple):
    """New parameters, new state of the optimizer, and the global norm of the gradients before clipping."""

    params: Any
    opt_state: Any
    grad_norm: Float[Array, ""]


def apply_gradients(optimizer: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any) -> Update:
    """Updates the parameters, inside jit.

    On a mesh every device updates the part of the parameters whose moments it holds. Gradients are summed into the
    sharding of the moments (with the axis `zero` by a reduce-scatter), and the new parameters are gathered from it.
    """
    grads = constrain(grads, moments=True)
    shards = constrain(params, moments=True)
    updates, opt_state = optimizer.update(grads, opt_state, shards)
    params = constrain(optax.apply_updates(shards, updates), moments=False)
    return Update(params, opt_state, optax.global_norm(grads))


class UncorrectedAdamState(NamedTuple):
    """Moving averages of the gradients and of their squares."""

    mean: Any
    square: Any


def scale_by_uncorrected_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Returns updates m / (sqrt(v) + epsilon) of plain moving averages m and v (official `xadam.py`).

    Adam's bias correction is left out, so that early steps are larger.
    """

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
    """Returns True for parameters that decay: all but biases, LayerNorm scales and, without `deltas`, GDES's delta."""
    spared = {"bias", "scale"} | (set() if deltas else {"delta"})
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in spared, params)


def schedule(config: OptimizerConfig, *, total_steps: int) -> Callable[[jax.typing.ArrayLike], Float[Array, "*shape"]]:
    """Returns the multiplier of the learning rate as a function of the step, from 0 (official `lr_schedulers.py`).

    As in the official code, every schedule starts at 0, so that the first update changes only the moments, and starts
    again after the last step. "warmup_linear" drops from 1 to 1 - warmup where the warmup ends; "warmup_linear_shift",
    the default, falls continuously from 1.

    Raises:
      UserError: if the warmup is longer than `total_steps`.
    """
    if total_steps < 0:
        raise ValueError(f"total_steps is {total_steps}; it must be at least 0")
    if total_steps == 0:  # a run that only evaluates, for which no warmup is too long
        return lambda step: jnp.zeros(jnp.shape(step))
    end = config.schedule_end
    warmup = config.warmup / total_steps if config.warmup >= 1 else config.warmup
    if warmup >= 1:
        raise UserError(f"warmup of {config.warmup:g} steps does not fit into {total_steps} steps; give fewer")

    def after_warmup(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        remaining = (1 - x) / (1 - warmup)
        match config.schedule:
            case "warmup_linear":
                return (1 - end) * (1 - x) + end
            case "warmup_linear_shift":
                return (1 - end) * remaining + end
            case "warmup_cosine":
                return 0.5 * (1 + jnp.cos(jnp.pi * x))
            case "warmup_linear_cosine":
                return 0.5 * (1 + jnp.cos(jnp.pi * (1 - remaining)))
            case "warmup_constant":
                return jnp.ones_like(x)

    def multiplier(step: jax.typing.ArrayLike) -> Float[Array, "*shape"]:
        x = jnp.mod(jnp.asarray(step), total_steps) / total_steps  # the share of the steps that are done
        # Both branches are computed for every step, so the bound keeps a warmup of 0 from dividing by 0.
        return jnp.where(x < warmup, x / max(warmup, 1e-12), after_warmup(x))

    return multiplier
