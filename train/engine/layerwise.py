"""Learning rates by layer, and frozen layers."""

from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from deberta_jax.sharding import parameter_path


def depth_of(path: str, layers: int) -> int:
    """Returns the depth of a parameter: 0 below all layers, l + 1 in layer l (from 0), layers + 1 above all of them.

    Embeddings are below all layers, and so are the parameters that all layers share: relative embeddings, their norm
    and the convolution.
    """
    names = path.split("/")
    if names[0] != "deberta":
        return layers + 1
    numbers = [int(name.removeprefix("layer_")) for name in names if name.removeprefix("layer_").isdecimal()]
    return numbers[0] + 1 if numbers else 0


def stop_frozen_gradients(params: Any, *, frozen: int, layers: int) -> Any:
    """Returns the parameters with stopped gradients for the embeddings and the first `frozen` layers (0: for none).

    Skips the backward pass of frozen parameters, which `layerwise_learning_rates` alone would compute in vain.
    """
    if not frozen:
        return params
    return jax.tree.map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if depth_of(parameter_path(path), layers) <= frozen else leaf,
        params,
    )


def layerwise_learning_rates(
    optimizer: optax.GradientTransformation, *, decay: float, frozen: int, layers: int
) -> optax.GradientTransformation:
    """Returns the optimizer with a learning rate that falls from the head to the embeddings.

    This is the layer-wise learning-rate decay of ELECTRA and BEiT.

    Args:
      optimizer: gives the updates of the head.
      decay: factor from each layer to the one below it; the last layer has `decay` times the rate of the head.
      frozen: number of layers, from the first one, that stay unchanged together with the embeddings, weight decay
        included (0 freezes nothing).
      layers: number of layers of the model.
    """
    if decay == 1 and not frozen:
        return optimizer

    def scale_updates(updates: Any, params: Any) -> Any:
        del params

        def scale(path: Any, update: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            depth = depth_of(parameter_path(path), layers)
            return update * (0.0 if frozen and depth <= frozen else decay ** (layers + 1 - depth))

        return jax.tree.map_with_path(scale, updates)

    return optax.chain(optimizer, optax.stateless(scale_updates))
