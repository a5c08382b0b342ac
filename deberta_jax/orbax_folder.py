"""A tree of arrays in a folder in Orbax's format, whatever the name of the folder."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from .errors import UserError
from .orbax_messages import ORBAX_MESSAGES
from .orbax_path import orbax_path
from .sharding import parameter_path


def write_folder(path: Path, tree: Any) -> None:
    """Writes a tree of arrays. With several processes, every process calls it with the same global arrays.

    Raises:
      OSError, ValueError: The folder cannot be written.
    """
    # Without compression, and without Orbax's own copy of NumPy arrays, writing needs almost no memory.
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    # Writes to a temporary folder and renames it, on a mounted bucket as well, whatever the default of Orbax becomes.
    rename = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.ATOMIC_RENAME)
    with (
        ORBAX_MESSAGES.suppressed(),
        ocp.Checkpointer(handler, atomicity_options=rename) as checkpointer,
    ):
        checkpointer.save(orbax_path(path), args=ocp.args.PyTreeSave(tree), force=True)


def read_shapes(path: Path) -> Any:
    """Returns the shapes and types of a tree, without reading an array. No process has to wait for another one.

    Raises:
      UserError: The folder has no readable metadata.
    """
    try:
        with ORBAX_MESSAGES.suppressed(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            saved = handler.metadata(orbax_path(path)).tree
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
    except (FileNotFoundError, NotImplementedError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, UserError):  # of `orbax_path`
            raise
        raise UserError(
            f"the parameters in {path} are damaged or incomplete: its metadata cannot be read; copy the folder or save "
            "the model again"
        ) from error


def read_folder(path: Path, target: Any) -> Any:
    """Reads a tree of arrays. With several processes, every process calls it.

    Args:
      path: The folder.
      target: A jax.ShapeDtypeStruct with its sharding for each array.
    """
    with ORBAX_MESSAGES.suppressed(), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(orbax_path(path), target)


def read_array(folder: epath.Path, tree: Any, name: str) -> np.ndarray:
    """Returns one array of a tree. No process has to wait for another one.

    Args:
      folder: The folder, from `orbax_path`.
      tree: The saved tree, of which only names, shapes and types are used: its buffers may be donated.
      name: The path of the array (see `sharding.parameter_path`).

    Raises:
      OSError, ValueError: It cannot be read.
    """

    def requested(path: tuple, leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if parameter_path(path) == name else ocp.PLACEHOLDER

    target = jax.tree_util.tree_map_with_path(requested, tree)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ORBAX_MESSAGES.suppressed(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        restored = handler.restore(folder, args=ocp.args.PyTreeRestore(item=target, restore_args=as_numpy))
    return next(leaf for leaf in jax.tree.leaves(restored) if leaf is not ocp.PLACEHOLDER)


def read_back(path: Path, tree: Any) -> None:
    """Compares metadata and the smallest array of a folder with what was written. One process calls it alone.

    Raises:
      OSError, ValueError: They cannot be read.
      RuntimeError: They are others.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if read_shapes(path) != jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree):
        raise RuntimeError(f"{path} does not hold the arrays that were written to it")
    if not leaves:
        return
    key, array = min(leaves, key=lambda item: item[1].size)
    name = parameter_path(key)
    restored = read_array(orbax_path(path), tree, name)
    if isinstance(array, jax.Array):
        if not array.is_fully_addressable and not array.is_fully_replicated:
            return
        array = array.addressable_data(0) if array.is_fully_replicated else array
    if restored.tobytes() != np.asarray(array).tobytes():
        raise RuntimeError(f"{path} has another {name} than was written to it")
