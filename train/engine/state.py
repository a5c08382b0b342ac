"""The state of a training run, all of which is in every checkpoint."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt32

from deberta_jax.sharding import compiler_options

# Fixed, because keys are saved in checkpoints: a user's JAX settings must not change what a resumed run draws.
KEY_IMPLEMENTATION = "threefry2x32"


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state, step and random state.

    Attributes:
      step: number of updates so far.
      params: parameters by model.
      opt_state: state of each optimizer, by the model that it updates.
      rng: raw key data. Every step folds its number into it, so a resumed run draws the same random numbers as an
        uninterrupted one.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    rng: UInt32[Array, "2"]

    @classmethod
    def create(cls, params: dict[str, Any], opt_state: dict[str, Any], *, seed: int) -> "TrainState":
        """Returns the state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, opt_state, jax.random.key_data(training_key(seed)))

    def step_key(self) -> Key[Array, ""]:
        """Returns the key of the next step."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.rng, impl=KEY_IMPLEMENTATION), self.step)


def training_key(seed: int) -> Key[Array, ""]:
    """Returns a key whose bits do not depend on how arrays are sharded."""
    return jax.random.key(seed, impl=KEY_IMPLEMENTATION)


def place_state(
    draw: Callable[[Any], Any], create: Callable[[Any], TrainState], weights: Any, placement: TrainState
) -> TrainState:
    """Returns `create(draw(weights))`, sharded over the devices of a mesh.

    One process draws the parameters outside of jit, which compiles one small program for each distinct shape. Several
    processes draw them inside of jit, because each would otherwise draw all of them on its first device. Call it with
    no mesh in use, because JAX would draw all parameters on all of its devices.

    No device holds more than its part of the state, with one exception: where one process has several devices, its
    first device holds all parameters as well, until they are spread. Pretrained weights become part of the state
    without a copy where they lie as they should.

    Args:
      draw: returns the parameters before the first step from the weights; traceable.
      create: returns the state with these parameters; traceable.
      weights: pretrained weights. Do not use them afterwards.
      placement: the sharding of each array of the state.
    """
    if not all(sharding.is_fully_addressable for sharding in jax.tree.leaves(placement)):
        return jax.jit(lambda weights: create(draw(weights)), out_shardings=placement)(weights)
    params = jax.device_put(draw(weights), placement.params)
    return jax.jit(create, out_shardings=placement, donate_argnums=0)(params)


def jit_step(step: Callable[..., Any], placement: TrainState) -> Any:
    """Returns the jitted form of a training step, which donates the state.

    Args:
      step: returns a new state and figures.
      placement: the sharding of each array of the state.
    """
    options = compiler_options(jax.tree.leaves(placement)[0].mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(placement, None), compiler_options=options)
