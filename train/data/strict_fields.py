"""Reads JSON into dataclasses without tolerance: every field is there, once, and of its type."""

import dataclasses
import json
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from deberta_jax.strict_json import twin_key

T = TypeVar("T")
_SHOWN = 60  # characters of a value in a message
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    dict: "an object",
    tuple: "a list",
}


def parse_object(content: bytes) -> dict[str, Any]:
    """Returns a JSON object.

    Raises:
      ValueError: the content is not UTF-8 or not JSON, is nested too deeply, has a field twice, or is not an object.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _checked(value, dict, "its content")


def build(kind: type[T], fields: Any, where: str, **given: Any) -> T:
    """Returns a dataclass of the fields of a JSON object, which may contain lists and other dataclasses.

    Args:
      kind: a dataclass whose fields are annotated with bool, int, float, str, Literal, None, a dataclass, or a tuple
        `tuple[X, ...]`.
      fields: the object.
      where: the object's place in the file, for messages; "" for the file itself.
      given: fields that are not in the object.

    Raises:
      ValueError: a field is missing, unknown or of another type.
    """
    fields = _checked(fields, dict, where or "its content")
    prefix = f"{where}." if where else ""
    declared = {field.name: field for field in dataclasses.fields(kind) if field.name not in given}  # pyright: ignore[reportArgumentType]
    required = [name for name, field in declared.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in fields]:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    if unknown := [name for name in fields if name not in declared]:
        raise ValueError(f"{show(prefix + unknown[0])} is not a field; allowed are {', '.join(declared)}")
    hints = get_type_hints(kind)
    values = {name: _converted(value, hints[name], f"{prefix}{name}") for name, value in fields.items()}
    return kind(**values, **given)


def show(value: Any) -> str:
    """Returns a value as Python writes it, shortened, for a message."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        text = "a huge number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _converted(value: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) in (types.UnionType, Union):  # `X | None`
        (hint,) = (choice for choice in get_args(hint) if choice is not type(None))
        return None if value is None else _converted(value, hint, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where} is {show(value)}; it must be one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        items = _checked(value, tuple, where)
        return tuple(_converted(item, get_args(hint)[0], f"{where}[{index}]") for index, item in enumerate(items))
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # pyright: ignore[reportArgumentType]
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return float(value)
    return _checked(value, hint, where)


def _checked(value: Any, kind: type, where: str) -> Any:
    """Returns the value if JSON has it as this type. True and false are no numbers."""
    if isinstance(value, list if kind is tuple else kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise ValueError(f"{where} is {show(value)}; it must be {_NAMES[kind]}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"the field {show(twin_key(pairs))} is there more than once")
    return fields


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it contains {name}, which JSON does not have")
