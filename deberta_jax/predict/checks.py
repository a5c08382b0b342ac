"""Checks of settings that several uses of a model have."""

from collections.abc import Sequence

from ..errors import UserError


def check_at_least_one(**settings: int | None) -> None:
    """Raises UserError if a setting is below 1. None is the default of a setting."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")


def check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises UserError if the value of a setting is not allowed."""
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
