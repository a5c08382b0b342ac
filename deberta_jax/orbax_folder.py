"""A tree of arrays in a folder in Orbax's format, whatever the name of the folder."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from .errors import UserError
from .orbax_messages import ORBAX_MESSAGES

_PATTERN = frozenset("*?[]\\")


@contextlib.contextmanager
def plain_path(path: Path) -> Iterator[Path]:
    """Yields a path of the same folder that has no character with a meaning in patterns.

    Orbax looks for what the processes have written with a pattern that begins with the unescaped path
    (`merge_ocdbt_per_process_files` in serialization/ocdbt_utils.py) and ignores that it finds nothing. Such a folder
    is reached through a temporary link to its parent.
    """
    if not _PATTERN & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deberta-jax-") as temporary:
        link = Path(temporary) / "folder"
        link.symlink_to(path.parent)
        yield link / path.name


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
        plain_path(path) as plain,
        ocp.Checkpointer(handler, atomicity_options=rename) as checkpointer,
    ):
        checkpointer.save(plain, args=ocp.args.PyTreeSave(tree), force=True)


def read_shapes(path: Path) -> Any:
    """Returns the shapes and types of a tree, without reading an array.

    Raises:
      UserError: The folder has no readable metadata.
    """
    with ORBAX_MESSAGES.suppressed(), plain_path(path) as plain, ocp.StandardCheckpointer() as checkpointer:
        return _shapes(checkpointer, plain, path)


def _shapes(checkpointer: Any, plain: Path, path: Path) -> Any:
    saved = checkpointer.metadata(plain).item_metadata
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
    with ORBAX_MESSAGES.suppressed(), plain_path(path) as plain, ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(plain, target)


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
        plain_path(path) as plain,
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone) as checkpointer,
    ):
        found = jax.tree_util.tree_leaves_with_path(_shapes(checkpointer, plain, path))
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
        (restored,) = jax.tree.leaves(checkpointer.restore(plain, args=arguments))
    if isinstance(array, jax.Array):
        if not array.is_fully_addressable and not array.is_fully_replicated:
            return
        array = array.addressable_data(0) if array.is_fully_replicated else array
    if np.asarray(restored).tobytes() != np.asarray(array).tobytes():
        raise RuntimeError(f"{path} has another {jax.tree_util.keystr(keys)} than was written to it")
