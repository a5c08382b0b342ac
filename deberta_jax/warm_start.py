"""Starts the training of one model from the parameters of another."""

from typing import Any

import jax
import jax.numpy as jnp

from .errors import UserError
from .sharding import parameter_path


def merge_pretrained(pretrained: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """Returns fresh parameters with the pretrained encoder, and with every pretrained head of the same shapes.

    Pretrained parameters that the fresh model does not have are left out, for example the position table of a model
    that reads absolute positions.

    Args:
      pretrained: {"deberta": ..., and any heads}, as from `load_pretrained`.
      fresh: {"deberta": ..., and the heads of the model to train}, as from its `init`.

    Raises:
      UserError: the pretrained encoder lacks a parameter, or has one of another shape.
    """
    encoder = dict(jax.tree.leaves_with_path(pretrained["deberta"]))
    for path, leaf in jax.tree.leaves_with_path(fresh["deberta"]):
        shape = encoder[path].shape if path in encoder else None
        if shape != leaf.shape:
            raise UserError(
                f"the pretrained weights have {shape or 'nothing'} at deberta/{parameter_path(path)}, "
                f"where the model needs {leaf.shape}; choose weights of this size, or the configuration that belongs "
                "to them"
            )
    heads = {
        name: pretrained[name]
        for name in fresh
        if name != "deberta" and name in pretrained and _same_shapes(pretrained[name], fresh[name])
    }
    return {**fresh, "deberta": jax.tree.map_with_path(lambda path, _: encoder[path], fresh["deberta"]), **heads}


def _same_shapes(first: Any, second: Any) -> bool:
    return jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, second)
