"""Reads back a checkpoint that was just committed, because a write can fail without an error."""

from typing import Any

import jax
import orbax.checkpoint as ocp

from deberta_jax.checksums import host_checksum
from deberta_jax.orbax_folder import read_array
from deberta_jax.sharding import parameter_path

from .manifest import verified_content

_MOST_BYTES = 4 << 20  # of the array that is read


def read_back(folder: Any, state: Any, manifest: dict) -> None:
    """Reads the manifest and one array of a step. No process has to wait for another one.

    Args:
      folder: the folder of the step, a path of the type that Orbax uses.
      state: the saved tree, of which only names, shapes and dtypes are used: its buffers may be donated.
      manifest: the saved manifest, from `create_manifest`.

    Raises:
      OSError: it cannot be read.
      ValueError: what is on disk is incomplete, or not what was saved.
    """
    content = verified_content(ocp.JsonCheckpointHandler().restore(folder / "meta"))
    if content != manifest["content"]:
        raise ValueError("the manifest that was read back is not the one that was saved")
    name = _array_to_read(state)
    read = read_array(folder / "state", state, name)
    if host_checksum(read) != content["leaves"][name]["checksum"]:
        raise ValueError(f"wrong checksum of {name}, read back after the save")


def _array_to_read(state: Any) -> str:
    """Returns the name of the largest array of at most 4 MiB, or of the smallest one."""
    sizes = {parameter_path(path): x.size * x.dtype.itemsize for path, x in jax.tree_util.tree_leaves_with_path(state)}
    small = [name for name, size in sizes.items() if size <= _MOST_BYTES]
    return max(small, key=sizes.__getitem__) if small else min(sizes, key=sizes.__getitem__)
