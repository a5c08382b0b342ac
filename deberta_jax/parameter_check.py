"""Checks of parameters: names and shapes against a configuration, without reading an array, and finite values."""

from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from .config import DebertaConfig
from .errors import UserError
from .models import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from .sharding import parameter_path
from .terminal import list_names

_TOKENS = np.zeros((1, 8), np.int32)


def adapt_to_parameters(config: DebertaConfig, params: Any) -> DebertaConfig:
    """Returns the configuration with `token_projection` if the parameters have that layer.

    Folders that earlier versions saved have the layer without the field.
    """
    return config.replace(token_projection=True) if "token_proj" in params else config


def check_readable(config: DebertaConfig, params: Any, *, where: str) -> None:
    """Raises if the models of a configuration do not read some parameters, or need other shapes.

    Missing parameters are no error: the discriminator of a pair that shares its embeddings has no tables.
    Neither are parts that no model of this library has, such as a head of the caller's.

    Args:
      config: the configuration.
      params: nested dict of arrays or of `jax.ShapeDtypeStruct`s, with the encoder under `deberta`.
      where: the folder, for error messages.

    Raises:
      UserError: layers beyond the number of the configuration, a head's layer that it does not have, or other shapes.
    """
    if "classifier" in params:  # multiple choice has one output with any number of classes
        classes = params["classifier"]["bias"].shape[0]
        config = config.replace(num_labels=classes, label_names=(), problem_type=None)
    if config.uses_enhanced_mask_decoder:  # the names are the same without the decoder, which has more requirements
        config = config.replace(mlm_head="bert")
    classifies = DebertaForSequenceClassification if "pooler" in params else DebertaForTokenClassification
    models = {
        DebertaForMaskedLM: ("mlm_head",),
        DebertaForReplacedTokenDetection: ("rtd_head",),
        DebertaForQuestionAnswering: ("span_classifier",),
        classifies: ("pooler", "classifier") if "pooler" in params else ("classifier", "token_proj"),
    }
    used = {model: names for model, names in models.items() if any(name in params for name in names)}
    for model, names in used.items():
        _trace(model(config), {name: params[name] for name in ("deberta", *names) if name in params}, where)
    if not used and "deberta" in params:
        _trace(Deberta(config), params["deberta"], where)


def _trace(model: Any, params: Any, where: str) -> None:
    """Traces a model, which checks the names and the shapes of its parameters. Missing ones are initialized."""

    def apply(params: Any) -> Any:
        return model.apply({"params": params}, _TOKENS, mutable=["params"], rngs={"params": jax.random.key(0)})

    try:
        jax.eval_shape(apply, params)
    except flax.errors.ScopeParamShapeError as error:
        reason = str(error).partition(" (http")[0].rstrip(".")
        raise UserError(f"{where} has parameters of another size than its config.json says: {reason}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_finite(params: Any, *, where: str) -> None:
    """Raises if a parameter has an element that is not a number or is infinite.

    With several processes, every process calls it with the same global arrays.

    Args:
      params: A nested dict of arrays.
      where: The folder or file, for the message.

    Raises:
      UserError: There are such parameters; the message names them.
    """
    if names := nonfinite_parameters(params):
        raise UserError(
            f"{len(names)} of {len(jax.tree.leaves(params))} parameters of {where} have values that are NaN or "
            f"infinite: {list_names(names, most=4)}; the training has diverged or the file is damaged, take an earlier "
            "model"
        )


def nonfinite_parameters(params: Any) -> list[str]:
    """Returns the paths of the parameters that have a NaN or an infinite element.

    With several processes, every process calls it with the same global arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    # One program for each shape, not one for the tree: a large model has many arrays but few shapes.
    checks = [np.isfinite(x).all() if isinstance(x, np.ndarray) else _all_finite(x) for _, x in leaves]
    finite = jax.device_get(checks)
    return [parameter_path(path) for (path, _), is_finite in zip(leaves, finite, strict=True) if not is_finite]


_all_finite = jax.jit(lambda x: jnp.isfinite(x).all())
