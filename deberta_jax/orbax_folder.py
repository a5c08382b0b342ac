"""A tree of arrays in a folder in Orbax's format, whatever the name of the folder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from .errors import UserError
from .orbax_messages import ORBAX_MESSAGES
from .orbax_path import orbax_path


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
    """Returns the shapes and types of a tree, without reading an array.

    Raises:
      UserError: The folder has no readable metadata.
    """
    with ORBAX_MESSAGES.suppressed(), ocp.StandardCheckpointer() as checkpointer:
        return _shapes(checkpointer, path)


def _shapes(checkpointer: Any, path: Path) -> Any:
    saved = checkpointer.metadata(orbax_path(path)).item_metadata
    if saved is None:  # Orbax logs the reason
        raise UserError(
            f"the parameters in {path} are damaged or incomplete: its metadata cannot be read; copy the folder or save "
            "the model again"
        )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved.tree)


def read_folder(path: Path, target: Any) -> Any:
    """Reads a tree of arrays. With several processes, every process calls it.

    Args:
      path: The folder.
      target: A jax.ShapeDtypeStruct with its sharding for each array.
    """
    with ORBAX_MESSAGES.suppressed(), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(orbax_path(path), target)


def read_one_array(path: Path, tree: Any) -> None:
    """Compares metadata and the smallest array of a folder with what was written. One process calls it alone.

    Raises:
      OSError, ValueError: They cannot be read.
      RuntimeError: They are others.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"read_back_{jax.process_index()}",
    )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    with (
        ORBAX_MESSAGES.suppressed(),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone) as checkpointer,
    ):
        found = jax.tree_util.tree_leaves_with_path(_shapes(checkpointer, path))
        if [(key, leaf.shape, leaf.dtype) for key, leaf in found] != [(k, x.shape, x.dtype) for k, x in leaves]:
            raise RuntimeError(f"{path} does not hold the arrays that were written to it")
        smallest = min(leaves, key=lambda item: item[1].size, default=None)
        if smallest is None:
            return
        keys, array = smallest
        item: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(keys):
            item = {key.key: item}  # pyright: ignore[reportAttributeAccessIssue] (parameters are nested dicts)
        arguments = ocp.args.PyTreeRestore(item=item, restore_args=item, partial_restore=True)
        (restored,) = jax.tree.leaves(checkpointer.restore(orbax_path(path), args=arguments))
    if isinstance(array, jax.Array):
        if not array.is_fully_addressable and not array.is_fully_replicated:
            return
        array = array.addressable_data(0) if array.is_fully_replicated else array
    if np.asarray(restored).tobytes() != np.asarray(array).tobytes():
        raise RuntimeError(f"{path} has another {jax.tree_util.keystr(keys)} than was written to it")
