"""Reads and verifies one step of a run's checkpoints, and tells damage from storage that does not answer.

Every method of Reader is collective: all processes call it with the same step, and all get a result or the same error.
For one step the processes, in this order,

1. wait until every one of them sees the folder of the step, which a network file system may show late (`_await_step`);
2. read the manifest, and agree on how that went. Each compares the identity and the shapes with its own, which have to
   be equal everywhere, so all of them raise the same error or none does;
3. read their shards of the arrays, and agree on how that went;
4. compute the checksums, by collectives that give all of them the same values.

A process never raises the error of its own read before it has exchanged it with the others (`_read`): they would wait
for it in the next exchange.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from deberta_jax.checksums import describe_leaves
from deberta_jax.sharding import parameter_path
from deberta_jax.terminal import list_names

from ..hosts.processes import gather_json, host_name
from .manifest import (
    DIGESTS,
    changed_digests,
    join_names,
    library_versions,
    list_differences,
    verified_content,
)
from .storage_faults import (
    CheckpointError,
    Fault,
    Result,
    Retries,
    agree_on_fault,
    outcome_of,
    read_fault,
    write_fault,
)

_NAMES_SHOWN = 3  # in a message
_LISTING_SECONDS = 60  # within which every host has to see a step that process 0 lists


class DamagedError(Exception):
    """One step cannot be read back. An older one may be readable."""


@dataclass(frozen=True)
class Restored:
    """A training state read from disk.

    Attributes:
      step: the number of the training step.
      state: tree of jax.Array.
      data: the position of the data iterator, as it was given to `Checkpointer.save`.
    """

    step: int
    state: Any
    data: dict


@dataclass(frozen=True)
class Reader:
    """Reads steps.

    Attributes:
      folder: the folder of all steps, a path of the type that Orbax uses.
      identity: the identity of this run, which that of a checkpoint must equal.
      retries: for storage that does not answer.
      log: receives one line for each event that a person should know of.
    """

    folder: Any
    identity: dict
    retries: Retries
    log: Callable[[str], None]

    def read_step(self, step: int, abstract_state: Any) -> Restored:
        """Reads and verifies a step.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct, each with a sharding.

        Raises:
          DamagedError: some process could not read what was written.
          CheckpointError: the step belongs to another run, or a process is not allowed to read it or cannot see it.
        """
        self._await_step(step)
        content = self._read(step, lambda: self._read_manifest(step))
        self._require_same_run(step, content["identity"])
        # Other names and shapes are a mistake of the caller, not damage. Dtypes may differ.
        saved_shapes = {name: leaf["shape"] for name, leaf in content["leaves"].items()}
        shapes = {name: leaf["shape"] for name, leaf in describe_leaves(abstract_state).items()}
        self._require_equal("training state", saved_shapes, shapes)
        if (versions := library_versions()) != content["versions"]:
            changes = list_names(list_differences(content["versions"], versions), most=_NAMES_SHOWN)
            self.log(f"the checkpoint of step {step} was written with other versions: {changes}")
        state = self._read(step, lambda: self._read_state(step, abstract_state, content["leaves"]))
        described = describe_leaves(state, checksums=True)
        if wrong := [name for name, leaf in content["leaves"].items() if described[name] != leaf]:
            raise DamagedError(f"wrong checksum of {list_names(wrong, most=_NAMES_SHOWN)}")
        # The checksum is that of the saved dtype, so the state is cast to the requested one only now.
        state = jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), state, abstract_state)
        return Restored(step=step, state=state, data=content["data"])

    def rename_damaged(self, damaged: dict[int, str], *, used: int) -> None:
        """Renames damaged steps on process 0, so that their numbers are free.

        Args:
          damaged: the reason for each damaged step.
          used: the step that was read instead.

        Raises:
          CheckpointError: process 0 cannot rename one.
        """
        for step, reason in damaged.items():
            name = gather_json(_free_name(self.folder, f"{step}.damaged"))[0]
            self.log(
                f"the checkpoint of step {step} in {self.folder} is damaged ({reason}): "
                f"resuming from step {used} instead; the damaged one is kept as {name}"
            )
            error = None
            if jax.process_index() == 0:
                _, error = outcome_of(lambda: (self.folder / str(step)).rename(self.folder / name), (OSError,))  # noqa: B023
            if (fault := agree_on_fault(error, write_fault)) is not None:
                raise CheckpointError(
                    f"could not rename the damaged step {step} in {self.folder} to {name}: {fault.text}; "
                    "see that the folder is writable, then run the same command again"
                ) from error

    def _await_step(self, step: int) -> None:
        """Waits until all hosts see the folder of a step: one that a host does not see yet is not damaged.

        Raises:
          CheckpointError: a host does not see a step which others see.
        """

        def look() -> Fault | None:
            exists, _ = outcome_of((self.folder / str(step)).exists)
            missing_on = [name for name in gather_json(None if exists else host_name()) if name is not None]
            if not missing_on or len(missing_on) == jax.process_count():
                return None  # if it is missing everywhere, reading it reports what is missing
            return Fault(
                "outage", f"{list_names(missing_on, most=_NAMES_SHOWN)} cannot see step {step} in {self.folder}"
            )

        retries = Retries(min(self.retries.patience, _LISTING_SECONDS))
        if fault := retries.retry_after(look(), look, log=self.log):
            raise CheckpointError(f"{fault.text}, which other hosts see; give all hosts one shared folder as --output")

    def _read(self, step: int, read: Callable[[], Result]) -> Result:
        """Calls `read`, with retries while the storage of any process does not answer, and returns its result.

        Raises:
          DamagedError: `read` failed on some process.
          CheckpointError: a process is not allowed to read.
          Exception: what is no fault of the storage, such as a mistake of the caller, is raised as it is.
        """
        result, cause = None, None

        def read_on_every_process() -> Fault | None:
            nonlocal result, cause
            result, cause = outcome_of(read, (OSError, ValueError, LookupError))
            return agree_on_fault(cause, read_fault)

        def log(text: str) -> None:
            self.log(f"cannot read the checkpoint of step {step} in {self.folder}: {text}")

        fault = self.retries.retry_after(read_on_every_process(), read_on_every_process, log=log)
        if fault is None:
            return result  # pyright: ignore[reportReturnType]  # `read` has succeeded
        if fault.kind == "denied":
            raise CheckpointError(
                f"cannot read the checkpoint of step {step} in {self.folder}: {fault.text}; "
                "see that every host may read the folder, then run the same command again to resume"
            ) from cause
        raise DamagedError(fault.text) from cause

    # Both functions below call Orbax's handlers. CheckpointManager.restore ends in a barrier, at which the other
    # processes would wait for one that failed to read.

    def _read_manifest(self, step: int) -> dict:
        return verified_content(ocp.JsonCheckpointHandler().restore(self.folder / str(step) / "meta"))

    def _read_state(self, step: int, abstract_state: Any, leaves: dict) -> Any:
        def as_saved(path: tuple, wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            if wanted.sharding is None:
                name = parameter_path(path)
                raise TypeError(f"abstract_state has no sharding for {name}; give jax.ShapeDtypeStruct one")
            return wanted.update(dtype=jnp.dtype(leaves[parameter_path(path)]["dtype"]))

        target = jax.tree_util.tree_map_with_path(as_saved, abstract_state)
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            folder = self.folder / str(step) / "state"
            try:
                return handler.restore(folder, args=ocp.args.StandardRestore(target))
            except Exception as error:
                # Orbax raises a bare Exception when one part of an array of several processes cannot be read.
                if type(error) is not Exception:
                    raise
                raise ValueError(str(error)) from error

    def _require_same_run(self, step: int, saved: dict) -> None:
        """Compares the identity of a checkpoint with that of this run.

        Raises:
          CheckpointError: the settings or the digests differ.
        """
        there = {key: value for key, value in saved.items() if key != DIGESTS}
        here = {key: value for key, value in self.identity.items() if key != DIGESTS}
        differences = list_differences(there, here)
        changed, unknown = changed_digests(saved.get(DIGESTS, {}), self.identity.get(DIGESTS, {}))
        if changed:
            also = f", and {list_names(differences, most=_NAMES_SHOWN)}" if differences else ""
            raise CheckpointError(
                f"the run in {self.folder} began with other {join_names(changed)}{also}; use another --output, "
                f"restore the files and settings it began with, or delete {self.folder} to train again"
            )
        self._require_equal("configuration", there, here)
        if unknown:
            self.log(
                f"the checkpoint of step {step} is of an earlier version and has no digest of {join_names(unknown)}: "
                "cannot check whether they are still the same"
            )

    def _require_equal(self, kind: str, there: dict, here: dict) -> None:
        if differences := list_differences(there, here):
            raise CheckpointError(
                f"checkpoint of another {kind} in {self.folder}: {list_names(differences, most=_NAMES_SHOWN)}; "
                "use another --output, or the same settings"
            )


def _free_name(folder: Any, name: str) -> str:
    """Returns `name`, or `name-2`, `name-3`, ... if it exists in `folder`."""
    free, number = name, 1
    while (folder / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free
