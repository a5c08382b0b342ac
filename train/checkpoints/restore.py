"""Reads one step of a run's checkpoints back, checks it, and tells damage from storage that does not answer.

Every function is collective: all processes call it, with the same step, and all get a result or the same error.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from deberta_jax.errors import UserError

from ..hosts.processes import gather, host_name
from . import manifest
from .checksums import describe_leaves, leaf_name
from .storage_faults import CheckpointError, Fault, Result, Retries, agree, attempt, read_fault, write_fault

_LISTING_SECONDS = 60  # in which every host comes to see a step that process 0 lists


class DamagedError(Exception):
    """One step cannot be read back; an older one may."""


@dataclass(frozen=True)
class Restored:
    """A training state read back: `state` is the pytree, `data` the state of the data iterator."""

    step: int
    state: Any
    data: dict


@dataclass(frozen=True)
class Reader:
    """Reads steps from `folder`, a path of the kind that Orbax has, for the run of this `identity`."""

    folder: Any
    identity: dict
    retries: Retries
    log: Callable[[str], None]

    def read_step(self, step: int, abstract_state: Any) -> Restored:
        """The state of `step`, verified.

        Raises:
          DamagedError: it is not what was written, on any process.
          CheckpointError: it belongs to another run, or a process is not let read it, or cannot see it.
        """
        self._await_sight_of(step)
        content = self._read(step, lambda: self._read_manifest(step))
        self._require_same("configuration", content["identity"], self.identity)
        # Names and shapes are the caller's matter, never damage. Dtypes may differ.
        shapes = {name: leaf["shape"] for name, leaf in content["leaves"].items()}
        wanted = {name: leaf["shape"] for name, leaf in describe_leaves(abstract_state).items()}
        self._require_same("training state", shapes, wanted)
        if (versions := manifest.versions()) != content["versions"]:
            changes = ", ".join(manifest.differences(content["versions"], versions))
            self.log(f"the checkpoint of step {step} was written with other versions: {changes}")
        state = self._read(step, lambda: self._read_state(step, abstract_state, content["leaves"]))
        found = describe_leaves(state, checksums=True)
        if wrong := [name for name, leaf in content["leaves"].items() if found[name] != leaf]:
            raise DamagedError(f"wrong checksum of {manifest.shorten(wrong)}")
        # The checksum belongs to the dtype that was saved; only then may the caller's dtype apply.
        state = jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), state, abstract_state)
        return Restored(step=step, state=state, data=content["data"])

    def set_aside(self, damaged: dict[int, str], *, used: int) -> None:
        """Renames damaged steps (number -> reason), after step `used` has proved good.

        Raises:
          CheckpointError: process 0 cannot rename one.
        """
        for step, reason in damaged.items():
            aside = gather(_free_name(self.folder, f"{step}.damaged"))[0]
            self.log(
                f"the checkpoint of step {step} in {self.folder} is damaged ({reason}): "
                f"resuming from step {used} instead; the damaged one is kept as {aside}"
            )
            error = None
            if jax.process_index() == 0:
                _, error = attempt(lambda: (self.folder / str(step)).rename(self.folder / aside), (OSError,))  # noqa: B023
            if (fault := agree(error, write_fault)) is not None:
                raise CheckpointError(
                    f"could not rename the damaged step {step} in {self.folder} to {aside}: {fault.text}; "
                    "see that the folder is writable, then run the same command again"
                ) from error

    def _await_sight_of(self, step: int) -> None:
        """A network file system may show a new folder late: a step that a host does not see is not damaged."""
        blind: list[str] = []

        def look() -> Fault | None:
            nonlocal blind
            seen, _ = attempt((self.folder / str(step)).exists)
            blind = [name for name in gather(None if seen else host_name()) if name is not None]
            if not blind or len(blind) == jax.process_count():  # gone for all: the reader says what is missing
                return None
            return Fault("passing", f"{manifest.shorten(blind)} cannot see step {step} in {self.folder}")

        patience = Retries(min(self.retries.patience, _LISTING_SECONDS))
        if fault := patience.until_it_works(look(), look, log=self.log):
            raise CheckpointError(f"{fault.text}, which other hosts see; give all hosts one shared folder as --output")

    def _read(self, step: int, read: Callable[[], Result]) -> Result:
        """The result of `read`, tried again while the storage of any process does not answer.

        What is no fault of the storage (memory, mistakes of the caller) is raised as it is.
        """
        result, cause = None, None

        def on_every_process() -> Fault | None:
            nonlocal result, cause
            result, cause = attempt(read, (OSError, ValueError, LookupError))
            return agree(cause, read_fault)

        def log(what: str) -> None:
            self.log(f"cannot read the checkpoint of step {step} in {self.folder}: {what}")

        fault = self.retries.until_it_works(on_every_process(), on_every_process, log=log)
        if fault is None:
            return result  # pyright: ignore[reportReturnType]  # of `read`, which did not fail
        if fault.kind == "denied":
            raise CheckpointError(
                f"cannot read the checkpoint of step {step} in {self.folder}: {fault.text}; "
                "see that every host may read the folder, then run the same command again to resume"
            ) from cause
        raise DamagedError(fault.text) from cause

    # Both readers go through Orbax's handlers: CheckpointManager.restore ends in a barrier, at which the other
    # processes would wait for one that failed to read.

    def _read_manifest(self, step: int) -> dict:
        return manifest.check(ocp.JsonCheckpointHandler().restore(self.folder / str(step) / "meta"))

    def _read_state(self, step: int, abstract_state: Any, leaves: dict) -> Any:
        def as_saved(path: tuple, wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            if wanted.sharding is None:
                raise TypeError(f"abstract_state has no sharding for {leaf_name(path)}; give jax.ShapeDtypeStruct one")
            return wanted.update(dtype=jnp.dtype(leaves[leaf_name(path)]["dtype"]))

        target = jax.tree_util.tree_map_with_path(as_saved, abstract_state)
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            folder = self.folder / str(step) / "state"
            try:
                return handler.restore(folder, args=ocp.args.StandardRestore(target))
            except Exception as error:
                if type(error) is not Exception:
                    raise
                # How Orbax reports an array of several processes of which a part cannot be read.
                raise UserError(str(error)) from error

    def _require_same(self, what: str, there: dict, here: dict) -> None:
        if differences := manifest.differences(there, here):
            raise CheckpointError(
                f"checkpoint of another {what} in {self.folder}: {manifest.shorten(differences)}; "
                "use another --output, or the same settings"
            )


def _free_name(folder: Any, name: str) -> str:
    """`name`, or `name-2`, `name-3`, ... where it is taken in `folder`."""
    free, number = name, 1
    while (folder / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free
