"""Adam's moments in bfloat16: half the memory of the optimizer, and less of the memory traffic of an update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from deberta_jax.random import bits_of_index, element_bits


class NarrowMomentsState(NamedTuple):
    """Number of updates so far, which the rounding depends on, and the state of Adam with its moments in bfloat16."""

    updates: Int[Array, ""]
    moments: Any


def with_bfloat16_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns Adam with its moments stored in bfloat16. Updates are still computed in float32.

    Moments are rounded up or down at random, such that their expected values are exact. Rounding to nearest would keep
    them where they are: with beta2 = 0.999 the second moment changes by at most a thousandth of itself in a step, where
    the numbers of bfloat16 are 1/256 to 1/128 of themselves apart, and the first moment of a constant gradient would
    stop 2 % before it.

    The random bits depend on the number of updates, on the parameter and on an element's position in it. So a resumed
    run and a run on another mesh round as one that was never stopped on one device.

    Args:
      adam: a transformation; every float32 array of its state is a moment.
    """

    def init(params: Any) -> NarrowMomentsState:
        moments = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, adam.init(params))
        return NarrowMomentsState(jnp.zeros((), jnp.int32), moments)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, NarrowMomentsState]:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state.moments)
        updates, moments = adam.update(updates, wide, params)
        return updates, NarrowMomentsState(
            jnp.asarray(optax.safe_increment(state.updates)), _round_moments(moments, state.updates)
        )

    return optax.GradientTransformation(init, update)


def _round_moments(moments: Any, count: Int[Array, ""]) -> Any:
    """Rounds every float32 array of a tree with its own bits."""
    leaves, structure = jax.tree.flatten(moments)
    step = count.astype(jnp.uint32)
    for number, leaf in enumerate(leaves):
        if leaf.dtype == jnp.float32:
            seeds = [bits_of_index(step, jnp.uint32(number), jnp.uint32(part)) for part in (1, 2)]
            leaves[number] = round_stochastically(leaf, element_bits(leaf.shape, *seeds))
    return jax.tree.unflatten(structure, leaves)


def round_stochastically(x: Float[Array, "*shape"], bits: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rounds float32 to one of the two neighbors in bfloat16; the nearer one is the likelier one.

    A bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half carries into the upper half with
    just the right probability.

    Args:
      x: the numbers. What is not finite stays as it is.
      bits: 32 random bits for each number, of which the upper 16 are used.
    """
    raised = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)
    rounded = jax.lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
