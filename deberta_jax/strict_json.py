"""JSON that every parser reads: Python's own writer puts NaN and Infinity into files, which JSON does not have."""

import collections
import json
import math
from typing import Any

_LINE_SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def twin_key(pairs: list[tuple[str, Any]]) -> str:
    """Returns the first key that an object has twice. Python's reader would keep the last of its values."""
    counts = collections.Counter(key for key, _ in pairs)
    return next(key for key, count in counts.items() if count > 1)


def to_json(value: Any, *, indent: int | None = None, ascii: bool = False) -> str:
    """Returns a value as strict JSON, with null for numbers that are not finite.

    Text is written as it is, not as escapes. Exceptions are the line separators of Unicode, at which many readers of
    JSON Lines would split, and text that has half of a surrogate pair, which UTF-8 cannot encode.

    Args:
      value: dicts with keys of strings, lists, tuples, strings, numbers, booleans and None.
      indent: number of spaces per level (default: everything on one line).
      ascii: write everything but printable ASCII as escapes, for a terminal (default: False).
    """
    value = _finite(value)
    if ascii:
        return json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f")
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False).translate(_LINE_SEPARATORS)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
