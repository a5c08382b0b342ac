"""The parameters that training starts from: random ones, or those of another model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Int

from .errors import UserError
from .sharding import parameter_path

# Ends of the paths of an encoder that a model may have without reading them: absolute positions, which only the
# enhanced mask decoder reads, and a LayerNorm that the official BERT baseline never calls.
_NOT_NEEDED = ("embeddings/position_embeddings/embedding", "encoder/layer_norm/scale", "encoder/layer_norm/bias")


def initial_params(
    model: nn.Module,
    rngs: Any,
    input_ids: Int[Array | np.ndarray, "B ..."],
    pretrained: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the parameters of `model.init`, with pretrained ones in the place of random ones.

    Outside of jit neither a forward pass nor a program of all parameters is compiled (see `evaluate_by_operation`).
    Random parameters that pretrained ones would replace are not drawn.

        params = initial_params(DebertaForMaskedLM(config), jax.random.key(0), jnp.ones((1, 8), jnp.int32))

    Args:
      model: a model of this library.
      rngs: a key, or keys by name, as for `model.init`.
      input_ids: any token ids of the shape that the model takes.
      pretrained: parameters to start from, merged as by `merge_pretrained` (default: all parameters are random).

    Raises:
      UserError: as `merge_pretrained`.
    """

    def draw(rngs: Any) -> dict[str, Any]:
        return dict(model.init(rngs, input_ids)["params"])

    if pretrained is None:
        return evaluate_by_operation(draw, rngs)
    params = merge_pretrained(pretrained, jax.eval_shape(draw, rngs))
    missing = [name for name, part in params.items() if isinstance(jax.tree.leaves(part)[0], jax.ShapeDtypeStruct)]
    return params | evaluate_by_operation(lambda rngs: {name: draw(rngs)[name] for name in missing}, rngs)


def evaluate_by_operation(function: Callable[[Any], Any], argument: Any) -> Any:
    """Returns `function(argument)`, computed one operation at a time, and only those that the result depends on.

    So a function like `model.init`, which computes far more than it returns, needs no compilation of a whole program:
    only one of each operation for each distinct shape, however many layers there are. Under `jax.jit` the compilation
    takes longer with every layer: 37 s for the two models of a base run on an H100, against 2 s for these programs.

    Args:
      function: a traceable function.
      argument: a tree of arrays.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(argument)
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
    results = jaxpr_as_fun(program.replace(jaxpr=needed))(*jax.tree.leaves(argument))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


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
