"""What a checkpoint says of itself, beside its arrays: step, data, identity of the run, versions, and checksums."""

import importlib.metadata
import json
import zlib
from collections.abc import Mapping
from typing import Any

from deberta_jax.errors import UserError

from .checksums import describe_leaves

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_NAMES_SHOWN = 3


def make(step: int, state: Any, *, data: dict, identity: dict) -> dict:
    """The manifest of `state`, a tree of jax.Array, as JSON values with a checksum of their own."""
    content = as_json(
        {
            "step": step,
            "data": data,
            "identity": identity,
            "versions": versions(),
            "leaves": describe_leaves(state, checksums=True),
        }
    )
    return {"content": content, "crc32": _crc32(content)}


def check(manifest: Mapping[str, Any]) -> dict:
    """The content of a manifest that was read back.

    Raises:
      ValueError: it is not what was written.
      LookupError: it is not a manifest.
    """
    if manifest["crc32"] != _crc32(manifest["content"]):
        raise UserError("wrong checksum of meta")
    return manifest["content"]


def versions() -> dict[str, str]:
    """The versions of the libraries that a checkpoint depends on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def as_json(value: dict) -> dict:
    """`value` as it will be read back (tuples as lists), and no longer shared with the caller."""
    return json.loads(json.dumps(value))


def differences(there: dict, here: dict, prefix: str = "") -> list[str]:
    """Differing fields of two nested dicts, as `a.b is 1 there, 2 here`."""
    found = []
    for key in [*there, *(key for key in here if key not in there)]:
        name = f"{prefix}{key}"
        old, new = there.get(key, _ABSENT), here.get(key, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} is {_value(old)} there, {_value(new)} here")
    return found


def shorten(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


_ABSENT = object()


def _value(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def _crc32(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
