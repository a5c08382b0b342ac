"""Checkpoints of a training run: Orbax, with what Orbax leaves out.

Orbax writes asynchronously, keeps the newest steps and commits each by renaming a directory, so a killed save never
looks finished. It does not notice a flipped byte in array data. Every checkpoint therefore carries a checksum of each
leaf, computed on the device from the arrays that are saved, and independent of how they are sharded. It also carries
the identity of the run (model, tokenizer, optimizer), so that a run cannot silently resume another one's state.

With Orbax alone, storage that fails for a moment ends the run, and where it fails on one process the others wait for
that one. Here every process learns at its next call that a save has failed on any, and what is then saved is tried
again until it is on disk, or `patience` is over.

A step on disk: `<folder>/<step>/state` (arrays) and `<folder>/<step>/meta` (JSON).

How a step is committed is left to Orbax: on `gs://`, where nothing can be renamed, by a commit file; else by a rename,
on a bucket mounted by gcsfuse too. A commit file would work on such a mount, and Orbax recommends it; but then a
half-written step has its final name, and every folder without that file is removed at the next start, steps that were
set aside as damaged among them. The rename asks for a bucket with a hierarchical namespace, which renames a folder in
one step. Of a bucket without it gcsfuse refuses to rename folders of many files, which is a failed save, or copies file
by file, and a copy that was cut off is found to be damaged. (From the sources of Orbax 0.12.8; no bucket was tried.)
"""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import jax
import orbax.checkpoint as ocp

from deberta_jax.errors import UserError

from ..hosts.processes import coordinator, gather
from . import manifest
from .commit_barrier import CommitBarrier
from .restore import DamagedError, Reader, Restored
from .storage_faults import CheckpointError, Fault, Retries, StuckError, agree, attempt, one_line, write_fault

__all__ = ["CheckpointError", "Checkpointer", "Restored"]

_TEMPORARY = ".orbax-checkpoint-tmp"
_LEAVING_SECONDS = 60  # for a save on its way, when an exception ends the run


@dataclass(frozen=True)
class _Save:
    """What is to be saved and is not yet known to be on disk."""

    step: int
    state: Any
    manifest: dict


def _print_to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Checkpointer:
    """Saves and restores the training state in `folder`, keeping the newest `keep` steps.

    Every method is collective: with several processes, all of them call it, at the same step, with the same `data`.
    Only `latest_step`, and leaving a `with` block by an exception, concern one process alone.

    Args:
      folder: where the steps lie, shared by all processes; a `gs://` address as a string.
      keep: how many steps stay on disk, at least 1.
      identity: nested dict of JSON values that a checkpoint must match to be resumed.
      log: receives one line per event that a person should know of; called on process 0 only.
      patience: seconds for which a save that fails, or a read from storage that does not answer, is tried again.
      timeout: seconds in which one try of a save has to be on disk on all processes, or it has failed. A process whose
        storage never answers holds the others for about twice as long, then CheckpointError is raised. (All of this is
        below what the watchdog allows a save, HostsConfig.slow_after.)

    Raises:
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
    ) -> None:
        if keep < 1:
            raise UserError(f"keep is {keep}; at least 1 checkpoint has to be kept")
        self._folder = str(folder)
        self._local = None if "://" in self._folder else Path(self._folder).absolute()
        self._identity = manifest.as_json(identity)
        self._log = log
        self._patience, self._timeout = patience, timeout
        self._pending: _Save | None = None
        self._writing = False  # by Orbax' threads, since self._began
        self._began = 0.0
        self._stuck = False
        self._cause: Exception | None = None  # of the newest fault, if this process has it
        self._manager = self._open(keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def latest_step(self) -> int | None:
        """The newest step, which may still be on its way to disk; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict) -> None:
        """Starts writing `state` (a tree of jax.Array) and `data` (JSON values) as checkpoint `step`.

        Returns once the values are held on the host: the caller may donate the buffers of `state` to the next step.
        (On CPU Orbax holds the device buffers themselves, and JAX does not reuse a donated buffer while it is held.)

        If the save before has failed, on any process, or this one cannot begin, one line says so, and this call tries
        again, with growing pauses, until this step is on disk. So an outage costs time and the steps that failed, and
        the run goes on. After the last save of a run there is no other: its `state` has to be alive, not donated, when
        `wait` is called.

        Raises:
          CheckpointError: it could not be written within `patience`, or never will (permissions); or `step` exists.
        """
        fault = self._finish()
        if any(gather(step in self._manager.all_steps())):
            raise CheckpointError(f"{self._folder} already holds a checkpoint of step {step}; save each step once")
        self._pending = _Save(step, state, manifest.make(step, state, data=data, identity=self._identity))
        if (fault := fault or self._start()) is not None:
            self._write_at_last(fault)

    def restore(self, abstract_state: Any) -> Restored | None:
        """Reads the newest good checkpoint, or returns None where there is none at all.

        `abstract_state` is a tree of jax.ShapeDtypeStruct, each with a sharding: the arrays come back with those
        shardings and dtypes, whatever mesh and number of processes wrote them. A damaged step is reported and, once an
        older one has proved good, renamed to `<step>.damaged`: nothing is deleted, and the step can be saved again.
        All processes use the same step: process 0 lists them, and damage seen by one counts for all.

        Raises:
          CheckpointError: the checkpoint belongs to another configuration, every one is damaged, or a process is not
            let read one or cannot see it.
        """
        self.wait()
        reader = Reader(self._manager.directory, self._identity, Retries(self._patience), self._log_once)
        damaged: dict[int, str] = {}
        for step in sorted(gather(list(self._manager.all_steps()))[0], reverse=True):
            try:
                restored = reader.read_step(step, abstract_state)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            reader.set_aside(damaged, used=step)
            if damaged:
                self._manager.reload()
            return restored
        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged ({reasons}); "
                "restore the folder from a copy, or use another --output to start again"
            )
        return None

    def wait(self) -> None:
        """Blocks until the last save is on disk; one that has failed is tried again as long as its state is alive.

        Raises:
          CheckpointError: it could not be written within `patience`, or a later step has taken its buffers.
        """
        fault = self._finish()
        if fault is None:
            return
        assert self._pending is not None
        gone = any(leaf.is_deleted() for leaf in jax.tree.leaves(self._pending.state))
        if any(gather(gone)):
            self._give_up(fault)
        self._write_at_last(fault)

    def close(self) -> None:
        """Waits as `wait` does, then ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._end_threads()

    # ---------------------------------------------------------------- writing

    def _open(self, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            # So Orbax' constructor meets no barrier: it may fail, and be called again, on one process alone.
            create=False,
            save_root_metadata=False,
            cleanup_tmp_directories=self._local is None,
            async_options=ocp.AsyncOptions(
                timeout_secs=self._timeout,
                barrier_sync_fn=CommitBarrier(coordinator()) if jax.process_count() > 1 else None,
            ),
            # Orbax would look on process 0, between two barriers, for what `save` has already looked for.
            file_options=ocp.options.FileOptions(skip_sync_file_validations=True),
        )
        manager: ocp.CheckpointManager | None = None

        def open_folder() -> ocp.CheckpointManager:
            self._probe()
            if self._local is not None and jax.process_index() == 0:
                for left_over in self._local.glob(f"*{_TEMPORARY}"):
                    shutil.rmtree(left_over)
            return ocp.CheckpointManager(self._local or self._folder, options=options)

        def on_every_process() -> Fault | None:
            nonlocal manager
            manager, self._cause = attempt(open_folder)
            return agree(self._cause, write_fault)

        what = f"cannot keep checkpoints in {self._folder}: "
        fault = Retries(self._patience).until_it_works(
            on_every_process(), on_every_process, log=lambda why: self._log_once(what + why)
        )
        if fault is not None:
            raise fault.error(f"{what}{fault.text}; use another --output") from self._cause
        assert manager is not None
        return manager

    def _probe(self) -> None:
        """Writes and removes a small file, so that nobody enters Orbax' barriers with storage that is down."""
        if self._local is not None:
            try:
                self._local.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError("not a directory") from error
            probe = self._local / f".probe-{jax.process_index()}"
            probe.write_text("the storage answers")
            probe.unlink()

    def _start(self) -> Fault | None:
        """Has Orbax begin to write what is pending, on storage that has just answered on every process."""
        _, self._cause = attempt(self._probe)
        if (fault := agree(self._cause, write_fault)) is not None:
            return fault
        assert self._pending is not None
        items = {
            "state": ocp.args.StandardSave(self._pending.state),
            "meta": ocp.args.JsonSave(self._pending.manifest),
        }
        self._began = time.monotonic()
        # Forced, as the caller decides when; Orbax would skip a step older than its newest.
        self._manager.save(self._pending.step, args=ocp.args.Composite(**items), force=True)
        self._writing = True
        return None

    def _finish(self) -> Fault | None:
        """Waits until nothing is being written any more. Then the pending step is on disk, or the fault is known."""
        if not self._writing:
            return None
        assert self._pending is not None
        step = self._pending.step
        _, self._cause = attempt(self._join)
        fault = agree(self._cause, write_fault)
        self._writing = False
        if fault is not None:
            with contextlib.suppress(OSError):
                self._manager.reload()
            if not gather(step in self._manager.all_steps())[0]:
                if self._local is not None and jax.process_index() == 0:  # it may be what fills the disk
                    shutil.rmtree(self._local / f"{step}{_TEMPORARY}", ignore_errors=True)
                return fault
            # Old steps are removed after the new one was committed.
            self._log_once(f"step {step} is in {self._folder}, but an old step could not be removed: {fault.text}")
        self._pending = None
        return None

    def _join(self, seconds: float = math.inf) -> None:
        """Waits for Orbax' threads. They meet those of other processes within twice the time-out, or never."""
        limit = min(time.monotonic() + seconds, self._began + 2 * self._timeout + 10)
        while self._manager.is_saving_in_progress():
            if time.monotonic() > limit:
                self._stuck = True
                raise StuckError(f"the storage has not answered for {time.monotonic() - self._began:.0f} s")
            time.sleep(0.005)
        self._manager.wait_until_finished()

    def _write_at_last(self, fault: Fault) -> None:
        """Tries what is pending again until it is on disk."""
        assert self._pending is not None
        step, began = self._pending.step, time.monotonic()
        last = Retries(self._patience).until_it_works(
            fault,
            lambda: self._start() or self._finish(),
            log=lambda why: self._log_once(f"could not write into {self._folder}: {self._good()}: {why}"),
        )
        if last is not None:
            self._give_up(last)
        self._log_once(f"step {step} is in {self._folder} after {time.monotonic() - began:.0f} s of trying")

    def _give_up(self, fault: Fault) -> NoReturn:
        self._pending = None
        todo = "free some space" if fault.kind == "full" else "see that the folder is writable"
        raise fault.error(
            f"could not write a checkpoint into {self._folder}: {fault.text}; {self._good()}; "
            f"{todo}, then run the same command again to resume"
        ) from self._cause

    def _good(self) -> str:
        last = self._manager.latest_step()
        return "no checkpoint has been written yet" if last is None else f"the last good one is step {last}"

    def _abandon(self) -> None:
        """Lets a save that is on its way end, without the other processes, which may be gone or somewhere else."""
        if self._writing:
            _, error = attempt(lambda: self._join(_LEAVING_SECONDS))
            if error is not None:
                self._log_once(f"could not write a checkpoint into {self._folder}: {one_line(error)}; {self._good()}")
        self._end_threads()

    def _end_threads(self) -> None:
        if not self._stuck:  # a thread that storage does not answer cannot be ended
            self._manager.close()

    def _log_once(self, message: str) -> None:
        if jax.process_index() == 0:
            self._log(message)
