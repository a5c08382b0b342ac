"""What a training run carries from step to step: the whole of it is in every checkpoint."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

KEY_IMPLEMENTATION = "threefry2x32"


@flax.struct.dataclass
class TrainState:
    """params and opt_state have one entry for each model that is trained by an optimizer of its own.

    `rng` is raw key data: every step folds its number into it, so a resumed run draws what an unbroken one would.
    """

    step: jax.Array  # int32, updates done
    params: dict[str, Any]
    opt_state: dict[str, Any]
    rng: jax.Array

    @classmethod
    def create(cls, params: dict[str, Any], opt_state: dict[str, Any], *, seed: int) -> "TrainState":
        return cls(jnp.zeros((), jnp.int32), params, opt_state, jax.random.key_data(training_key(seed)))

    def step_key(self) -> jax.Array:
        """The key of the step about to be taken."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.rng, impl=KEY_IMPLEMENTATION), self.step)


def training_key(seed: int) -> jax.Array:
    """A key whose bits do not depend on how arrays are sharded."""
    return jax.random.key(seed, impl=KEY_IMPLEMENTATION)
