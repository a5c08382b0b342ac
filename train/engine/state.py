"""The state of a training run, all of which is in every checkpoint."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt32

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
