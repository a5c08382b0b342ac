"""Checks the jaxtyping annotations of the library at run time, in tests only.

`install` must run before anything imports deberta_jax.
"""

import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype


def install() -> None:
    """Installs an import hook that checks every function of deberta_jax which takes or returns annotated arrays."""
    jaxtyping.install_import_hook("deberta_jax", "tests.support.shape_checks.check_arrays")


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with its array arguments and results checked, if any annotation names the shape of an array.

    Other annotations are left out: tests pass simple stand-ins for tokenizers, configurations and the like. Generated
    constructors of dataclasses are not checked either, because JAX rebuilds a dataclass that is a pytree with shapes,
    shardings or `None` in place of its arrays.
    """
    annotations = getattr(function, "__annotations__", {})
    shapes = {name: annotation for name, annotation in annotations.items() if _names_a_shape(annotation)}
    if function.__name__ == "__init__" or not shapes or not isinstance(function, types.FunctionType):
        return function
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__qualname__, copy.__annotations__ = (
        function.__kwdefaults__,
        function.__qualname__,
        shapes,
    )
    copy.__module__, copy.__doc__ = function.__module__, function.__doc__
    return beartype(copy)


def _names_a_shape(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_names_a_shape, typing.get_args(annotation)))
