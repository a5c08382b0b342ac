"""Parameters by their depth in the model: layers that stay as they are, learning rates that fall toward the input."""

from typing import Any

import jax
import optax

from deberta_jax.sharding import parameter_path


def depth(path: str, layers: int) -> int:
    """0 below all layers, l + 1 in layer l (from 0), layers + 1 above them all.

    Below stand the embeddings, and what all layers share: relative embeddings, their norm, the convolution.
    """
    names = path.split("/")
    if names[0] != "deberta":
        return layers + 1
    numbers = [int(name.removeprefix("layer_")) for name in names if name.removeprefix("layer_").isdecimal()]
    return numbers[0] + 1 if numbers else 0


def hold(params: Any, *, frozen: int, layers: int) -> Any:
    """The parameters, those of the embeddings and the first `frozen` layers held constant; 0: none.

    Nothing is computed for a gradient that nobody needs.
    """
    if not frozen:
        return params
    return jax.tree.map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if depth(parameter_path(path), layers) <= frozen else leaf,
        params,
    )


def by_depth(
    optimizer: optax.GradientTransformation, *, decay: float, frozen: int, layers: int
) -> optax.GradientTransformation:
    """The optimizer with learning rates by depth: full above the layers, `decay` times it in the last one, and so on.

    The embeddings and the first `frozen` layers stay as they are, weight decay included. `decay` is ELECTRA's and
    BEiT's layer-wise learning-rate decay.
    """
    if decay == 1 and not frozen:
        return optimizer

    def scale(updates: Any, params: Any) -> Any:
        del params

        def scaled(path: Any, update: jax.Array) -> jax.Array:
            here = depth(parameter_path(path), layers)
            return update * (0.0 if frozen and here <= frozen else decay ** (layers + 1 - here))

        return jax.tree.map_with_path(scaled, updates)

    return optax.chain(optimizer, optax.stateless(scale))
