"""The weights of the classes in a loss, from `--class-weights`."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names, quote_names

BALANCED = "balanced"
_LARGEST = 1e6


def class_weights(
    given: Sequence[str], classes: Sequence[str], counts: Int[np.ndarray, "C"], *, examples: int | None = None
) -> tuple[float, ...]:
    """Returns the weight of each class; an empty tuple if the user gave none.

    Args:
      given: "balanced"; a number for each class; or LABEL=WEIGHT, for some of them.
      classes: the names of the classes by index.
      counts: number of training examples of each class. Balanced weights are sum / (classes · count), so that all
        classes together weigh as much as without weights (scikit-learn's "balanced").
      examples: number of training examples, where each may have several classes. Balanced weights are then those of
        the examples with the label, (examples - count) / count (PyTorch's advice for `pos_weight`).

    Raises:
      UserError: if there is no such class, a weight is not a number above 0, or balanced weights are not defined.
    """
    if not given:
        return ()
    if list(given) == [BALANCED]:
        return _balanced(classes, counts, examples)
    if not any("=" in item for item in given):
        if len(given) != len(classes):
            raise UserError(
                f"class_weights has {len(given)} numbers for {len(classes)} classes ({quote_names(classes)}); give one "
                f"for each class, LABEL=WEIGHT, or {BALANCED}"
            )
        return tuple(_number(item) for item in given)
    weights: dict[str, float] = {}
    for item in given:
        label, equals, weight = item.rpartition("=")
        if not equals:
            raise UserError(f"class_weights has {item!r} among LABEL=WEIGHT; write all of them in one form")
        if label not in classes:
            raise UserError(f"class_weights names {label!r}, which is not one of the classes {quote_names(classes)}")
        if label in weights:
            raise UserError(f"class_weights names {label!r} twice; give every class one weight")
        weights[label] = _number(weight)
    return tuple(weights.get(name, 1.0) for name in classes)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= _LARGEST:
        raise UserError(
            f"class_weights has {text!r}; a weight is a number above 0 and at most {_LARGEST:g} (or give {BALANCED})"
        )
    return number


def _balanced(classes: Sequence[str], counts: Int[np.ndarray, "C"], examples: int | None) -> tuple[float, ...]:
    missing = [name for name, count in zip(classes, counts, strict=True) if not count]
    if missing:
        raise UserError(
            f"class_weights {BALANCED} needs training examples of every class, and there are none of "
            f"{list_names(missing, show=repr)}; give weights as LABEL=WEIGHT, or leave these classes out"
        )
    if examples is None:
        return tuple((counts.sum() / (len(counts) * counts)).tolist())
    if full := [name for name, count in zip(classes, counts, strict=True) if count == examples]:
        raise UserError(
            f"class_weights {BALANCED} needs training examples without the label {list_names(full, show=repr)}, which "
            "all of them have; give weights as LABEL=WEIGHT, or leave these classes out"
        )
    return tuple(((examples - counts) / counts).tolist())


def weights_array(weights: Sequence[float]) -> Float[np.ndarray, "C"] | None:
    """Returns weights as a loss takes them; None if there are none."""
    return np.array(weights, np.float32) if weights else None
