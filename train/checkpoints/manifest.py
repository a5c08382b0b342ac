"""The manifest of a checkpoint, stored beside its arrays: step, data position, identity, versions and checksums."""

import json
import zlib
from typing import Any

from deberta_jax.checksums import describe_leaves
from deberta_jax.terminal import shorten
from deberta_jax.versions import version_of

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_LONGEST_VALUE = 80  # characters
DIGESTS = "digests"  # entry of an identity: digests of what a run reads, by names for messages
_ABSENT = object()


def create_manifest(step: int, state: Any, *, data: dict, identity: dict) -> dict:
    """Returns the manifest of a training state as JSON values, with a checksum of their own.

    Args:
      state: tree of jax.Array.
      data: the position of the data iterator, and whatever else the training loop resumes from.
      identity: what a run has to match to resume from this checkpoint.
    """
    content = as_json(
        {
            "step": step,
            "data": data,
            "identity": identity,
            "versions": library_versions(),
            "leaves": describe_leaves(state, checksums=True),
        }
    )
    return {"content": content, "crc32": _crc32(content)}


def verified_content(manifest: Any) -> dict:
    """Returns the content of a manifest that was read from disk.

    Raises:
      ValueError: it is not a manifest, or not the one that was written.
    """
    if not isinstance(manifest, dict) or not {"content", "crc32"} <= manifest.keys():
        raise ValueError("meta is not a manifest")
    if manifest["crc32"] != _crc32(manifest["content"]):
        raise ValueError("wrong checksum of meta")
    return manifest["content"]


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that a checkpoint depends on."""
    return {name: version_of(name) for name in _LIBRARIES}


def as_json(value: dict) -> dict:
    """Returns a copy of a dict as JSON represents it: tuples, for example, become lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def list_differences(there: dict, here: dict, prefix: str = "") -> list[str]:
    """Returns the fields in which two nested dicts differ, as `a.b is 1 there, 2 here`."""
    differences = []
    for key in [*there, *(key for key in here if key not in there)]:
        name = f"{prefix}{key}"
        old, new = there.get(key, _ABSENT), here.get(key, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += list_differences(old, new, f"{name}.")
        elif old != new:
            differences.append(f"{name} is {_show(old)} there, {_show(new)} here")
    return differences


def changed_digests(there: dict, here: dict) -> tuple[list[str], list[str]]:
    """Compares digests of what a run reads, such as its examples, under names that a user understands.

    Args:
      there: the digests in a checkpoint. Earlier versions saved fewer of them, or none.
      here: the digests of this run.

    Returns:
      The names of those that differ, and of those that the checkpoint lacks.
    """
    changed = [name for name in there if name not in here or there[name] != here[name]]
    return changed, [name for name in here if name not in there]


def join_names(names: list[str]) -> str:
    """Returns all names, as `a, b and c`."""
    return ", ".join([*names[:-2], " and ".join(names[-2:])])


def _show(value: object) -> str:
    return "absent" if value is _ABSENT else shorten(json.dumps(value), _LONGEST_VALUE)


def _crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
