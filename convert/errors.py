"""The error that conversions raise, and how it lists parameter names."""

import re
from collections import Counter
from collections.abc import Iterable

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names


class ConversionError(UserError):
    """Weights cannot be converted: they are damaged, incomplete, of the wrong shape, or not expressible elsewhere."""


def shorten(names: Iterable[str]) -> str:
    """Returns at most eight names, separated by commas; names that differ only in the layer's number become one."""
    counts = Counter(re.sub(r"(layer[._])\d+", r"\1*", name) for name in names)
    return list_names([name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()])


def first_line(error: BaseException) -> str:
    """Returns the first line of another package's error message, or the name of its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
