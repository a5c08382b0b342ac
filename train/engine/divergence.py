"""Divergence: numbers that are not finite end a run, before anything of them is saved."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from deberta_jax.errors import UserError
from deberta_jax.sharding import parameter_path


class TrainingError(UserError):
    """Training diverged: a loss, a gradient, a parameter or a prediction is not finite; the message says which.

    All processes of a run raise it at the same point.
    """


def broken_parameters(params: Any) -> list[str]:
    """Returns the paths of the parameters that are not finite. Collective: all processes call it."""
    leaves = jax.tree.leaves_with_path(params)
    finite = np.asarray(_are_finite([leaf for _, leaf in leaves]))
    return [parameter_path(path) for (path, _), is_finite in zip(leaves, finite, strict=True) if not is_finite]


@jax.jit
def _are_finite(leaves: list[Array]) -> Bool[Array, "leaves"]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])
