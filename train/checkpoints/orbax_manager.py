"""Orbax's CheckpointManager as this library configures it, and the folder that it writes to."""

import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from deberta_jax.orbax_path import orbax_path

from ..hosts.processes import coordination_client
from .commit_barrier import CommitBarrier

_UNFINISHED = ".orbax-checkpoint-tmp"  # suffix of the folder of a step that is being written


def local_folder(folder: Path | str) -> Path | None:
    """Returns the folder as an absolute path, or None if it is an address such as `gs://bucket/run`."""
    return None if "://" in str(folder) else Path(folder).absolute()


def check_name(folder: Path | str) -> None:
    """Raises UserError if Orbax cannot use a local folder of this name (see `orbax_path`)."""
    if (local := local_folder(folder)) is not None:
        orbax_path(local)


def commit_mode(folder: Path | str) -> ocp.options.AtomicityMode:
    """Returns how a step is committed: by a rename, or on `gs://`, where a folder cannot be renamed, by a file in it.

    A bucket that is mounted (gcsfuse) is a local path: its steps are renamed.
    """
    on_bucket = str(folder).startswith("gs://")
    return ocp.options.AtomicityMode.COMMIT_FILE if on_bucket else ocp.options.AtomicityMode.ATOMIC_RENAME


def open_manager(folder: Path | str, *, keep: int, timeout: int) -> ocp.CheckpointManager:
    """Creates the folder and returns the manager of its steps. Process 0 removes the unfinished steps of killed runs.

    It meets no barrier: it may fail on one process alone, and be called again there.

    Args:
      keep: number of steps that stay on disk. Orbax keeps at least two, because it removes the old step before the
        new one has been read back.
      timeout: seconds within which a save has to be on disk on all processes.

    Raises:
      OSError, ValueError: the folder cannot be created, written or listed.
    """
    local = local_folder(folder)
    # Explicit, because what Orbax chooses by itself depends on its version: docs/checkpoints.md has the reasons.
    atomicity = ocp.options.AtomicityOptions(mode=commit_mode(folder))
    # The barrier is created before anything can fail: all processes have to create equally many.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(max(keep, 2)),
        # With these three the constructor of the manager meets no barrier.
        create=False,
        save_root_metadata=False,
        cleanup_tmp_directories=local is None,
        async_options=ocp.AsyncOptions(
            timeout_secs=timeout,
            barrier_sync_fn=CommitBarrier(coordination_client()) if jax.process_count() > 1 else None,
        ),
        # Otherwise process 0 checks, between two barriers, what `Checkpointer.save` has checked already.
        file_options=ocp.options.FileOptions(skip_sync_file_validations=True),
        atomicity_options=atomicity,
    )
    probe_folder(folder)
    if local is not None and jax.process_index() == 0:
        for unfinished in local.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(unfinished)
    return ocp.CheckpointManager(orbax_path(local) if local is not None else folder, options=options)


def probe_folder(folder: Path | str) -> None:
    """Writes and removes a small file, so that no process enters Orbax's barriers while its storage is down.

    Raises:
      OSError: the folder cannot be created or written.
    """
    local = local_folder(folder)
    if local is not None:
        try:
            local.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError("not a directory") from error
        probe = local / f".probe-{jax.process_index()}"
        probe.write_text("the storage answers")
        probe.unlink()


def remove_failed(folder: Path | str, step: int) -> None:
    """Removes, on process 0, what a failed save has written: it may be what fills the disk."""
    local = local_folder(folder)
    if local is not None and jax.process_index() == 0:
        shutil.rmtree(local / f"{step}{_UNFINISHED}", ignore_errors=True)
        shutil.rmtree(local / str(step), ignore_errors=True)  # committed, but it could not be read back
