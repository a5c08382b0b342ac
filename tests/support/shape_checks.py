"""Checks the jaxtyping annotations of the library at run time, in tests only.

`install` must run before anything imports deberta_jax.
"""

import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype


def install() -> None:
    """Installs an import hook that checks every function of deberta_jax which takes or returns annotated arrays."""
    jaxtyping.install_import_hook("deberta_jax", "tests.support.shape_checks.check_arrays")


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with its arguments checked, if any annotation names the shape of an array.

    Generated constructors of dataclasses are not checked: JAX rebuilds a dataclass that is a pytree with shapes,
    shardings or `None` in place of its arrays.
    """
    annotations = getattr(function, "__annotations__", {}).values()
    if function.__name__ == "__init__" or not any(map(_names_a_shape, annotations)):
        return function
    return beartype(function)


def _names_a_shape(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_names_a_shape, typing.get_args(annotation)))
