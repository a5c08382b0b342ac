"""Checkpoints of a training run: Orbax, plus checksums, the identity of the run, and retries on all processes together.

A step on disk is `<folder>/<step>/state` (arrays) and `<folder>/<step>/meta` (the manifest, as JSON). How a step is
committed, and what that requires of a bucket mounted by gcsfuse, is described in docs/checkpoints.md.

Orbax writes asynchronously, keeps the newest steps and commits each of them at once, so a save that is killed never
looks finished. This is what it lacks:

* It does not notice a flipped byte in array data. Every checkpoint therefore has a checksum of each leaf, computed on
  the devices from the arrays that are saved, which does not depend on how they are sharded.
* A run could resume the state of another run. The manifest therefore has the identity of the run.
* If storage fails for a moment, the run ends, and if it fails on one process, the others wait for that process.

So a save takes these steps, on all processes together:

1. Await the previous save (`_finish_save`). Each process waits for its own background thread, no longer than twice the
   time-out of a save. Then all exchange how theirs ended, so that all wait for the slowest one, and agree on a fault.
2. Write a small file, and exchange whether that worked (`_begin_save`). Orbax has barriers in its `save`: a process
   whose storage is down would leave the others waiting there.
3. Let Orbax copy the arrays to the host and start its background thread. The caller continues with the training step.
4. In the background, write, meet at CommitBarrier, and commit on process 0. The threads never use collectives, which
   belong to the main thread.
5. When 1 of the next save, or `wait`, finds it committed, read it back on process 0 (`read_back`).
6. If 1, 2, 4 or 5 failed, retry from 2 with the newest state (`_retry_save`) until it is on disk or `patience` is over.

If a process dies, the others hang in an exchange, which the watchdog of `hosts` ends, and a thread of Orbax at
CommitBarrier gives up after its time-out. A process that leaves by an exception (`_abandon_save`) waits for its own
thread only.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import jax
import orbax.checkpoint as ocp

from deberta_jax.errors import UserError
from deberta_jax.orbax_messages import ORBAX_MESSAGES
from deberta_jax.terminal import say, shorten

from ..hosts.processes import gather_json
from .background_save import BackgroundSave
from .manifest import as_json, create_manifest
from .orbax_manager import check_name, open_manager, probe_folder, remove_failed
from .read_back import read_back
from .restore import DamagedError, Reader, Restored
from .storage_faults import (
    CheckpointError,
    Fault,
    Retries,
    agree_on_fault,
    outcome_of,
    storage_message,
    write_fault,
)

__all__ = ["CheckpointError", "Checkpointer", "Restored"]

_ABANDON_SECONDS = 60


@dataclass(frozen=True)
class _PendingSave:
    """A step that is to be saved and is not yet known to be on disk."""

    step: int
    state: Any
    manifest: dict


def _print_to_stderr(message: str) -> None:
    say(message, error=True)


class Checkpointer:
    """Saves and restores the training state in a folder, and keeps the newest steps.

    Every method is collective: with several processes, all of them call it, at the same step, with the same `data`.
    The exceptions are `latest_step` and leaving a `with` block by an exception.

    Args:
      folder: where the steps are stored, shared by all processes; a `gs://` address is given as a string.
      keep: number of steps that stay on disk, at least 1.
      identity: nested dict of JSON values that a checkpoint must match to be resumed.
      log: receives one line for each event that a person should know of; called on process 0 only.
      patience: seconds for which a failing save, or a read from storage that does not answer, is retried.
      timeout: seconds within which one attempt of a save has to be on disk on all processes. A process whose storage
        never answers delays the others for about twice as long, then CheckpointError is raised. This is below the time
        that the watchdog allows a save (HostsConfig.slow_after).
      stop_requested: whether the process was asked to end, the same answer on all processes. A save that fails is then
        tried once more instead of for `patience`.

    Raises:
      UserError: `keep` is below 1, or Orbax cannot use a folder of this name (see `orbax_path`).
      CheckpointError: `folder` cannot be created, written or listed.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int,
        identity: dict,
        log: Callable[[str], None] = _print_to_stderr,
        patience: float = 600,
        timeout: int = 300,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        if keep < 1:
            raise UserError(f"keep is {keep}; it must be at least 1, the number of checkpoints that stay on disk")
        self._folder = str(folder)
        check_name(folder)
        self._keep = keep
        self._identity = as_json(identity)
        self._log = log
        self._patience, self._stop_requested = patience, stop_requested
        self._pending: _PendingSave | None = None
        self._cause: Exception | None = None  # the error behind the newest fault, if this process had one
        with contextlib.ExitStack() as cleanup:
            ORBAX_MESSAGES.suppress()
            cleanup.callback(ORBAX_MESSAGES.restore)
            self._manager = self._open(keep, timeout)
            self._background = BackgroundSave(self._manager, timeout=timeout)
            self._cleanup = cleanup.pop_all()  # deferred to `_end`, now that the folder is open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon_save()

    def latest_step(self) -> int | None:
        """Returns the newest step, which may still be being written, or None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict) -> None:
        """Starts to write `state` (a tree of jax.Array) and `data` (JSON values) as checkpoint `step`.

        Returns once the values are copied to the host: the caller may donate the buffers of `state` to the next
        training step. (On CPU Orbax keeps the device buffers themselves. JAX does not reuse a buffer that is in use.)

        If the previous save failed, on any process, or this one cannot begin, the failure is logged and this call
        retries, with growing pauses, until this step is on disk. An outage thus costs time and the steps that failed,
        and training continues. After the last save of a run, call `wait` while its `state` is alive, not donated.

        Raises:
          CheckpointError: the step could not be written within `patience`, or retrying cannot help.
          ValueError: `step` was saved before.
        """
        fault = self._finish_save()
        if any(gather_json(step in self._manager.all_steps())):
            raise ValueError(f"{self._folder} already holds a checkpoint of step {step}; save each step once")
        manifest = create_manifest(step, state, data=data, identity=self._identity)
        self._pending = _PendingSave(step, state, manifest)
        if (fault := fault or self._begin_save()) is not None:
            self._retry_save(fault)

    def restore(self, abstract_state: Any) -> Restored | None:
        """Reads the newest checkpoint that is not damaged.

        A damaged step is logged. Once an older one has been read, the damaged one is renamed to `<step>.damaged`:
        nothing is deleted, and the step can be saved again. All processes use the same step: process 0 lists the steps,
        and damage that one process finds counts for all.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct, each with a sharding. The restored arrays have these shardings
            and dtypes, on whatever mesh and number of processes they were written.

        Returns:
          The checkpoint, or None if the folder has none.

        Raises:
          CheckpointError: the checkpoint belongs to another configuration, every checkpoint is damaged, or a process
            is not allowed to read one or cannot see it.
        """
        self.wait()
        reader = Reader(self._manager.directory, self._identity, Retries(self._patience), self._log_on_first)
        damaged: dict[int, str] = {}
        for step in sorted(gather_json(list(self._manager.all_steps()))[0], reverse=True):
            try:
                restored = reader.read_step(step, abstract_state)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            reader.rename_damaged(damaged, used=step)
            if damaged:
                self._manager.reload()
            return restored
        if damaged:
            # They keep their names: without any checkpoint the next start would begin from step 0.
            reasons = "; ".join(f"step {step}: {shorten(reason)}" for step, reason in damaged.items())
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged ({reasons}); "
                "restore the folder from a copy, or use another --output to start again"
            )
        return None

    def wait(self) -> None:
        """Blocks until the last save is on disk. A failed save is retried as long as its state is alive.

        Raises:
          CheckpointError: it could not be written within `patience`, or its state was donated.
        """
        fault = self._finish_save()
        if fault is None:
            return
        assert self._pending is not None
        donated = any(leaf.is_deleted() for leaf in jax.tree.leaves(self._pending.state))
        if any(gather_json(donated)):
            self._raise_save_error(fault)
        self._retry_save(fault)

    def close(self) -> None:
        """Waits as `wait` does, then ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._end()

    def _open(self, keep: int, timeout: int) -> ocp.CheckpointManager:
        """Opens the folder, with retries. Collective."""
        manager: ocp.CheckpointManager | None = None

        def open_on_every_process() -> Fault | None:
            nonlocal manager
            manager, self._cause = outcome_of(lambda: open_manager(self._folder, keep=keep, timeout=timeout))
            return agree_on_fault(self._cause, write_fault)

        problem = f"cannot keep checkpoints in {self._folder}: "
        fault = self._retries().retry_after(
            open_on_every_process(), open_on_every_process, log=lambda text: self._log_on_first(problem + text)
        )
        if isinstance(self._cause, TypeError | AttributeError):  # not of the storage, but of Orbax as it is called here
            raise self._cause
        if fault is not None:
            raise fault.error(f"{problem}{fault.text}; use another --output") from self._cause
        assert manager is not None
        return manager

    def _retries(self) -> Retries:
        return Retries(self._patience, stop_requested=self._stop_requested)

    # ---------------------------------------------------------------- writing

    def _begin_save(self) -> Fault | None:
        """Lets Orbax begin to write the pending step, once storage has answered on every process. Collective."""
        _, self._cause = outcome_of(lambda: probe_folder(self._folder))
        if (fault := agree_on_fault(self._cause, write_fault)) is not None:
            return fault
        assert self._pending is not None
        try:
            self._background.start(self._pending.step, self._pending.state, self._pending.manifest)
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            if jax.process_count() > 1:  # the others wait in Orbax's barriers, which only ends with this process
                raise
            self._cause = error
            self._background.drain_errors()
            remove_failed(self._folder, self._pending.step)
            return agree_on_fault(error, write_fault)
        return None

    def _finish_save(self) -> Fault | None:
        """Waits until nothing is being written. Collective.

        Returns:
          The fault of the pending save, or None if it is on disk or there was none.
        """
        if not self._background.running:
            return None
        assert self._pending is not None
        step = self._pending.step
        _, self._cause = outcome_of(self._background.wait)
        fault = agree_on_fault(self._cause, write_fault)
        self._background.running = False
        if fault is not None and self._is_committed(step):
            # Orbax removes an old step only after the new one is committed.
            self._log_unremoved(step, fault)
            fault = None
        if fault is None:
            _, self._cause = outcome_of(self._read_back)
            fault = agree_on_fault(self._cause, write_fault)
        if fault is None:
            self._pending = None
            if self._keep == 1:  # Orbax keeps two: it removes an old step before the new one has been read back
                self._remove_steps_before(step)
            return None
        self._background.drain_errors()
        remove_failed(self._folder, step)
        with contextlib.suppress(OSError):
            self._manager.reload()
        return fault

    def _is_committed(self, step: int) -> bool:
        """Returns whether process 0 finds the step in the folder. Collective."""
        with contextlib.suppress(OSError):
            self._manager.reload()
        return gather_json(step in self._manager.all_steps())[0]

    def _read_back(self) -> None:
        """Reads the pending step, which was committed, on process 0. It raises the errors of `read_back`."""
        assert self._pending is not None
        if jax.process_index() == 0:
            folder = self._manager.directory / str(self._pending.step)
            read_back(folder, self._pending.state, self._pending.manifest)

    def _remove_steps_before(self, step: int) -> None:
        """Removes older steps, on process 0. Collective."""

        def remove() -> None:
            for old in self._manager.all_steps():
                if old < step:
                    (self._manager.directory / str(old)).rmtree()

        error = outcome_of(remove, (OSError,)).error if jax.process_index() == 0 else None
        if (fault := agree_on_fault(error, write_fault)) is not None:
            self._log_unremoved(step, fault)
        self._manager.reload()

    def _log_unremoved(self, step: int, fault: Fault) -> None:
        self._log_on_first(f"step {step} is in {self._folder}, but an old step could not be removed: {fault.text}")

    def _retry_save(self, fault: Fault) -> None:
        """Writes the pending step again until it is on disk. Collective."""
        assert self._pending is not None
        step, began = self._pending.step, time.monotonic()
        last_fault = self._retries().retry_after(
            fault,
            lambda: self._begin_save() or self._finish_save(),
            log=lambda text: self._log_on_first(f"could not write into {self._folder}: {self._last_good()}: {text}"),
        )
        if last_fault is not None:
            self._raise_save_error(last_fault)
        self._log_on_first(f"step {step} is in {self._folder} after {time.monotonic() - began:.0f} s of retries")

    def _raise_save_error(self, fault: Fault) -> NoReturn:
        self._pending = None
        advice = "free some space" if fault.kind == "full" else "see that the folder is writable"
        raise fault.error(
            f"could not write a checkpoint into {self._folder}: {fault.text}; {self._last_good()}; "
            f"{advice}, then run the same command again to resume"
        ) from self._cause

    def _last_good(self) -> str:
        """Returns which step a run would resume from, for messages."""
        step = self._manager.latest_step()
        return "no checkpoint has been written yet" if step is None else f"the last good one is step {step}"

    # ---------------------------------------------------------------- the end

    def _abandon_save(self) -> None:
        """Gives a save that is being written some time to end. Not collective: other processes may be gone."""
        if self._background.running:
            error = outcome_of(lambda: self._background.wait(_ABANDON_SECONDS)).error
            if error is None:
                error = outcome_of(self._read_back).error
            if error is not None:
                self._log_on_first(
                    f"could not write a checkpoint into {self._folder}: {storage_message(error)}; {self._last_good()}"
                )
        self._end()

    def _end(self) -> None:
        with self._cleanup:
            self._background.close()

    def _log_on_first(self, message: str) -> None:
        """Logs on process 0."""
        if jax.process_index() == 0:
            self._log(message)
