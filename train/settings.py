"""Groups of settings whose fields say in their annotations what they accept."""

import dataclasses
import math
import numbers
import typing
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro

from deberta_jax.errors import UserError
from deberta_jax.option_list import annotations_of
from deberta_jax.terminal import shown_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a field accepts, as a part of its annotation; `above` and `below` exclude the bound itself."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    finite: bool = True

    def __contains__(self, value: float) -> bool:
        return (
            -math.inf <= value <= math.inf  # NaN is not
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        words = [f"{name} {shown_number(bound)}" for name, bound in bounds.items() if bound is not None]
        return " and ".join(words) or "a finite number"


def check_seed(seed: int) -> None:
    """Raises UserError if a seed is negative or too large for a random key of JAX."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed is {shown_number(seed)}; it must not be negative, and at most {LARGEST_SEED}")


# JAX computes in 32 bits. These are the upper bounds of numbers whose range has none.
LARGEST_INT = 2**31 - 1
_LARGEST = {int: LARGEST_INT, float: float(np.finfo(np.float32).max)}
_SMALLEST = float(np.finfo(np.float32).tiny)

Positive = Annotated[int, Range(at_least=1)]
NotNegative = Annotated[int, Range(at_least=0)]
BatchSize = Annotated[int, Range(at_least=1, at_most=2**20)]  # examples; every host lists the indices of a batch
SHORTEST_ROW, LONGEST_ROW = 8, 2**20  # tokens of a row of pre-training
LARGEST_SEED = 2**63 - 1  # of a random key of JAX
Seed = Annotated[int, Range(at_least=0, at_most=LARGEST_SEED)]
NotNegativeNumber = Annotated[float, Range(at_least=0)]
PositiveNumber = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
ShareBelowOne = Annotated[float, Range(at_least=0, below=1)]
Seconds = Annotated[float, Range(above=0, finite=False)]


class Settings:
    """Base of all groups of settings: checks every field against the choices, type and `Range` of its annotation.

    Raises UserError where a value is not allowed.
    """

    PREFIX: ClassVar[str] = ""  # of the group's options, for error messages

    def __post_init__(self) -> None:
        for name, annotation in annotations_of(type(self)).items():
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                _check(f"{self.PREFIX}{name}", item, annotation)


def _check(name: str, value: Any, annotation: Any) -> None:
    """Raises UserError if a value, or an item of a tuple, contradicts a part of the annotation."""
    if value is None or value is tyro.MISSING:  # MISSING: a recipe leaves the user's folders open
        return
    parts = typing.get_args(annotation)  # of Literal the choices, of Annotated, unions and tuples what they consist of
    if typing.get_origin(annotation) is Literal:
        if value not in parts:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(str, parts))}")
        return
    number = {int: numbers.Integral, float: numbers.Real}.get(annotation, object)
    if not isinstance(value, number) or (annotation in (int, float) and isinstance(value, bool)):
        raise UserError(f"{name} is {value!r}; it must be a {'whole ' if annotation is int else ''}number")
    for part in parts:
        if isinstance(part, Range):
            _check_range(name, value, part, parts[0])
        _check(name, value, part)


def _check_range(name: str, value: float, allowed: Range, kind: type) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {shown_number(value)}; it must be {allowed}")
    bounded = allowed.at_most is not None or allowed.below is not None
    infinite = not allowed.finite and value == math.inf
    if not bounded and not infinite and abs(value) > _LARGEST[kind]:
        raise UserError(f"{name} is {shown_number(value)}; it must be at most {shown_number(_LARGEST[kind])}")
    if allowed.above == 0 and value < _SMALLEST:
        raise UserError(f"{name} is {value:g}; it must be at least {_SMALLEST:g}, because less is 0 in 32 bits")


# The options of a group with this mark have no prefix. (tyro's `prefix_name=False` leaves the options inside alone.)
Flat = tyro.conf.arg(name="")
