"""Starts the training of one model from the parameters of another."""

from typing import Any

import jax
import jax.numpy as jnp

from .errors import UserError
from .sharding import parameter_path

# Ends of the paths of an encoder that a model may have without reading them: absolute positions, which only the
# enhanced mask decoder reads, and a LayerNorm that the official BERT baseline never calls.
_NOT_NEEDED = ("embeddings/position_embeddings/embedding", "encoder/layer_norm/scale", "encoder/layer_norm/bias")


def merge_pretrained(pretrained: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """Returns fresh parameters with the pretrained encoder, and with every pretrained head of the same shapes.

    Pretrained heads that the fresh model does not have are left out, and so is a table of absolute positions that it
    does not read; `left_out` names them.

    Args:
      pretrained: {"deberta": ..., and any heads}, as from `load_pretrained`.
      fresh: {"deberta": ..., and the heads of the model to train}, as from its `init`.

    Raises:
      UserError: the pretrained encoder lacks a parameter, has one of another shape, or has one that the fresh model
        does not have, such as further layers.
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
    lost = sorted(parameter_path(path) for path in encoder.keys() - _paths(fresh["deberta"]))
    if lost := [path for path in lost if path not in _NOT_NEEDED]:
        raise UserError(
            f"the pretrained weights have {len(lost)} parameters that the model does not read, the first is "
            f"deberta/{lost[0]}; choose the configuration that belongs to them"
        )
    heads = {
        name: pretrained[name]
        for name in fresh
        if name != "deberta" and name in pretrained and _same_shapes(pretrained[name], fresh[name])
    }
    return {**fresh, "deberta": jax.tree.map_with_path(lambda path, _: encoder[path], fresh["deberta"]), **heads}


def left_out(pretrained: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    """Returns the parts of the pretrained parameters that `merge_pretrained` does not use because `fresh` lacks them.

    Args:
      pretrained: as for `merge_pretrained`.
      fresh: as for `merge_pretrained`, or their shapes.
    """
    heads = [name for name in pretrained if name not in fresh]
    unread = {parameter_path(path) for path in _paths(pretrained["deberta"]) - _paths(fresh["deberta"])}
    return heads + sorted(f"deberta/{path.rpartition('/')[0]}" for path in unread if not path.endswith("/bias"))


def _paths(tree: Any) -> set[Any]:
    return {path for path, _ in jax.tree.leaves_with_path(tree)}


def _same_shapes(first: Any, second: Any) -> bool:
    return jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, second)
