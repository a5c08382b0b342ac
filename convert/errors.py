"""The error that conversions raise, and how it lists parameter names."""

import re
from collections import Counter
from collections.abc import Iterable

from deberta_jax.errors import UserError

_MOST_NAMES = 8


class ConversionError(UserError):
    """Weights cannot be converted: they are damaged, incomplete, of the wrong shape, or not expressible elsewhere."""


def shorten(names: Iterable[str]) -> str:
    """Returns at most eight names, separated by commas; names that differ only in the layer's number become one."""
    counts = Counter(re.sub(r"(layer[._])\d+", r"\1*", name) for name in names)
    shown = [name if count == 1 else f"{name} ({count} times)" for name, count in list(counts.items())[:_MOST_NAMES]]
    more = [f"and {len(counts) - _MOST_NAMES} more"] if len(counts) > _MOST_NAMES else []
    return ", ".join(shown + more) or "nothing"


def first_line(error: BaseException) -> str:
    """Returns the first line of another package's error message, or the name of its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
