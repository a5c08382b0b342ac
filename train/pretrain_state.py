"""The optimizers of a pre-training run, and the state before its first step."""

import dataclasses
from collections.abc import Mapping

import optax

from deberta_jax.rtd import Params, RTDConfig, init_generator, init_params

from .configs import PretrainConfig
from .engine.optimizer import build_optimizer
from .engine.state import TrainState, training_key

Optimizers = dict[str, optax.GradientTransformation]


def build_state(
    config: PretrainConfig, models: RTDConfig, optimizers: Optimizers, weights: Mapping[str, Params]
) -> TrainState:
    """Returns the state before the first step; traceable by `jax.jit` and `jax.eval_shape`.

    Args:
      config: the settings of the run.
      models: configurations of generator and discriminator.
      optimizers: from `build_optimizers`.
      weights: pretrained models by "generator" and "discriminator"; `rtd.init_params` says what a missing model starts
        from. With the objective "mlm" only the generator is kept.

    Raises:
      UserError: if pretrained weights do not fit the model.
    """
    return create_state(optimizers, start_params(config, models, weights), seed=config.seed)


def start_params(config: PretrainConfig, models: RTDConfig, weights: Mapping[str, Params]) -> Params:
    """Returns the parameters of `build_state`, from the same arguments."""
    key = training_key(config.seed)
    if config.objective.name == "mlm":
        return {"generator": init_generator(models, key, weights.get("generator"))}
    return init_params(models, key, **weights)


def create_state(optimizers: Optimizers, params: Params, *, seed: int) -> TrainState:
    """Returns the state before the first step with these parameters."""
    opt_state = {
        name: optimizer.init(params if name == "joint" else params[name]) for name, optimizer in optimizers.items()
    }
    return TrainState.create(params, opt_state, seed=seed)


def build_optimizers(config: PretrainConfig) -> Optimizers:
    """Returns one optimizer per model, or one named "joint" for both if they are not decoupled."""
    generator = build_optimizer(config.optimizer, total_steps=config.steps)
    if config.objective.name == "mlm":
        return {"generator": generator}
    if not config.objective.decoupled:
        return {"joint": generator}
    rate = config.discriminator_learning_rate
    if rate is None:
        rate = config.optimizer.learning_rate
    discriminator = dataclasses.replace(config.optimizer, learning_rate=rate)
    return {"generator": generator, "discriminator": build_optimizer(discriminator, total_steps=config.steps)}
