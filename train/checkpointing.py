"""Checkpoints of a training run: Orbax, with what Orbax leaves out.

Orbax writes asynchronously, keeps the newest steps and commits each by renaming a directory, so a killed save never
looks finished. It does not notice a flipped byte in array data. Every checkpoint therefore carries a checksum of each
leaf, computed on the device from the arrays that are saved, and independent of how they are sharded. It also carries
the identity of the run (model, tokenizer, optimiser), so that a run cannot silently resume another one's state.

A step on disk: `<folder>/<step>/state` (arrays) and `<folder>/<step>/meta` (JSON).
"""

import contextlib
import errno
import functools
import importlib.metadata
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_NAMES_SHOWN = 3


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or used; the message is one line that says what to do."""


class _DamagedError(Exception):
    """One step cannot be read back; an older one may."""


@dataclass(frozen=True)
class Restored:
    """A training state read back: `state` is the pytree, `data` the state of the data iterator."""

    step: int
    state: Any
    data: dict


def _print_to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


_FROM_ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return _FROM_ORBAX not in record.pathname and _FROM_ORBAX not in record.getMessage()


def _skip_late_reads(otherwise: Callable[[Any], object], unraisable: Any) -> None:
    late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    if not late:
        otherwise(unraisable)


# Orbax logs every failure with its traceback through absl before raising it, and when one array cannot be read it
# abandons the reads of the others, which complain to asyncio and to a closed event loop. Here a failure is reported
# once, in one line, with the original chained. Filters, as grain and tensorflow-datasets log through absl too.
logging.getLogger("absl").addFilter(_not_from_orbax)
logging.getLogger("asyncio").addFilter(_not_from_orbax)
sys.unraisablehook = functools.partial(_skip_late_reads, sys.unraisablehook)


class Checkpointer:
    """Saves and restores the training state in `folder`, keeping the newest `keep` steps.

    Every method is collective: with several processes, all of them call it, at the same step, with the same `data`.

    Args:
      folder: where the steps lie, shared by all processes; a `gs://` address as a string.
      keep: how many steps stay on disk, at least 1.
      identity: nested dict of JSON values that a checkpoint must match to be resumed.
      log: receives one line per event that a person should know of; called on process 0 only.

    Raises:
      CheckpointError: `folder` cannot be created.
    """

    def __init__(
        self, folder: Path | str, *, keep: int, identity: dict, log: Callable[[str], None] = _print_to_stderr
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint has to be kept")
        self._folder = str(folder)
        self._identity = _as_json(identity)
        self._log = log
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True
        )
        path = self._folder if "://" in self._folder else os.path.abspath(self._folder)
        try:
            self._manager = ocp.CheckpointManager(path, options=options)
        except OSError as error:
            raise CheckpointError(f"cannot keep checkpoints in {self._folder}: {_one_line(error)}") from error
        if not self._manager.directory.is_dir():
            raise CheckpointError(f"cannot keep checkpoints in {self._folder}: not a directory; use another --output")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """The newest step, which may still be on its way to disk; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict) -> None:
        """Starts writing `state` (a tree of jax.Array) and `data` (JSON values) as checkpoint `step`.

        Returns once the values are held on the host: the caller may donate the buffers of `state` to the next step.
        (On CPU Orbax holds the device buffers themselves, and JAX does not reuse a donated buffer while it is held.)

        Raises:
          CheckpointError: this or the previous save could not be written, or `step` exists already.
        """
        self.wait()
        if step in self._manager.all_steps():
            raise CheckpointError(f"{self._folder} already holds a checkpoint of step {step}; save each step once")
        content = _as_json(
            {
                "step": step,
                "data": data,
                "identity": self._identity,
                "versions": _versions(),
                "leaves": _describe_leaves(state, checksums=True),
            }
        )
        meta = {"content": content, "crc32": _crc32(content)}
        with self._write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
                force=True,  # the caller decides when; Orbax would skip a step older than its newest
            )

    def restore(self, abstract_state: Any) -> Restored | None:
        """Reads the newest good checkpoint, or returns None where there is none at all.

        `abstract_state` is a tree of jax.ShapeDtypeStruct, each with a sharding: the arrays come back with those
        shardings and dtypes. A damaged step is reported and, once an older one has proved good, renamed to
        `<step>.damaged`: nothing is deleted, and the step can be saved again.

        Raises:
          CheckpointError: the checkpoint belongs to another configuration, or every one is damaged.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore_step(step, abstract_state)
            except _DamagedError as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, used=step)
            return restored
        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged ({reasons}); "
                "restore the folder from a copy, or use another --output to start again"
            )
        return None

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        with self._write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore raises ValueError, with the system's text inside
            self._manager.reload()
            full = _is_disk_full(error)
            reason = "the disk is full" if full else _one_line(error)
            last = self._manager.latest_step()
            good = "no checkpoint has been written yet" if last is None else f"the last good one is step {last}"
            todo = "free some space" if full else "see that the folder is writable"
            raise CheckpointError(
                f"could not write a checkpoint into {self._folder}: {reason}; {good}; "
                f"{todo}, then run the same command again to resume"
            ) from error

    def _restore_step(self, step: int, abstract_state: Any) -> Restored:
        content = _on_every_process(lambda: self._read_meta(step))
        self._require_same("configuration", content["identity"], self._identity)
        # Names and shapes are the caller's matter, never damage. Dtypes may differ.
        shapes = {name: leaf["shape"] for name, leaf in content["leaves"].items()}
        wanted = {name: leaf["shape"] for name, leaf in _describe_leaves(abstract_state).items()}
        self._require_same("training state", shapes, wanted)
        if (versions := _versions()) != content["versions"]:
            changes = ", ".join(_differences(content["versions"], versions))
            self._log_once(f"the checkpoint of step {step} was written with other versions: {changes}")
        state = _on_every_process(lambda: self._read_state(step, abstract_state, content["leaves"]))
        found = _describe_leaves(state, checksums=True)
        if wrong := [name for name, leaf in content["leaves"].items() if found[name] != leaf]:
            raise _DamagedError(f"wrong checksum of {_shorten(wrong)}")
        # The checksum belongs to the dtype that was saved; only then may the caller's dtype apply.
        state = jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), state, abstract_state)
        return Restored(step=step, state=state, data=content["data"])

    # Both readers go through Orbax's handlers: CheckpointManager.restore ends in a barrier, at which the other
    # processes would wait for one that failed to read.

    def _read_meta(self, step: int) -> dict:
        meta = ocp.JsonCheckpointHandler().restore(self._manager.directory / str(step) / "meta")
        if meta["crc32"] != _crc32(meta["content"]):
            raise ValueError("wrong checksum of meta")
        return meta["content"]

    def _read_state(self, step: int, abstract_state: Any, leaves: dict) -> Any:
        def as_saved(path: tuple, wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            if wanted.sharding is None:
                raise TypeError(f"abstract_state has no sharding for {_name(path)}; give jax.ShapeDtypeStruct one")
            return wanted.update(dtype=jnp.dtype(leaves[_name(path)]["dtype"]))

        target = jax.tree_util.tree_map_with_path(as_saved, abstract_state)
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            folder = self._manager.directory / str(step) / "state"
            return handler.restore(folder, args=ocp.args.StandardRestore(target))

    def _require_same(self, what: str, there: dict, here: dict) -> None:
        if differences := _differences(there, here):
            raise CheckpointError(
                f"checkpoint of another {what} in {self._folder}: {_shorten(differences)}; "
                "use another --output, or the same settings"
            )

    def _set_aside(self, damaged: dict[int, str], *, used: int) -> None:
        for step, reason in damaged.items():
            aside = _free_name(self._manager.directory, f"{step}.damaged")
            self._log_once(
                f"the checkpoint of step {step} in {self._folder} is damaged ({reason}): "
                f"resuming from step {used} instead; the damaged one is kept as {aside}"
            )
            _barrier("checkpoint_set_aside_named")  # before the rename every process must have chosen the same name
            if jax.process_index() == 0:
                (self._manager.directory / str(step)).rename(self._manager.directory / aside)
            _barrier("checkpoint_set_aside_renamed")
        if damaged:
            self._manager.reload()

    def _log_once(self, message: str) -> None:
        if jax.process_index() == 0:
            self._log(message)


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Checksum of an array of any shape with 1-, 2- or 4-byte elements: uint32 scalar.

    Each element's bits are mixed with its row-major index by an invertible hash (the finaliser of MurmurHash3) and
    added modulo 2^32. Adding integers commutes, so the value does not depend on the mesh; a change of one
    element always changes it, and a change of several goes unseen once in 2^32.
    """
    if x.dtype.itemsize > 4:
        raise TypeError(f"cannot checksum {x.dtype}; a training state has elements of 1, 2 or 4 bytes")
    bits = x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = bits.astype(jnp.uint32) + _mix(index)
    return _mix(mixed).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _describe_leaves(tree: Any, *, checksums: bool = False) -> dict[str, dict]:
    """Path of each leaf -> its shape and dtype, and its checksum where asked."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    described = {_name(path): {"shape": list(x.shape), "dtype": str(x.dtype)} for path, x in leaves}
    if checksums:
        # One program per shape, not one for the tree: a large model has many leaves and few shapes.
        values = jax.device_get([_checksum(x) for _, x in leaves])
        for leaf, value in zip(described.values(), values, strict=True):
            leaf["checksum"] = int(value)
    return described


def _on_every_process(read: Callable[[], Any]) -> Any:
    """The result of `read`, or _DamagedError on every process if it failed on any.

    What is not the checkpoint's fault (memory, permissions, mistakes of the caller) is raised as it is.
    """
    result, reason = None, None
    try:
        result = read()
    except PermissionError:
        raise
    except (OSError, ValueError, LookupError) as error:
        reason = _one_line(error)
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.asarray(reason is not None)).any():
        reason = reason or "another process could not read it"
    if reason is not None:
        raise _DamagedError(reason)
    return result


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _differences(there: dict, here: dict, prefix: str = "") -> list[str]:
    """Differing fields of two nested dicts, as `a.b is 1 there, 2 here`."""
    found = []
    for key in [*there, *(key for key in here if key not in there)]:
        name = f"{prefix}{key}"
        old, new = there.get(key, _ABSENT), here.get(key, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} is {_value(old)} there, {_value(new)} here")
    return found


_ABSENT = object()


def _value(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _shorten(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _as_json(value: dict) -> dict:
    """`value` as it will be read back (tuples as lists), and no longer shared with the caller."""
    return json.loads(json.dumps(value))


def _crc32(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _free_name(folder: Any, name: str) -> str:
    """`name`, or `name-2`, `name-3`, ... where it is taken in `folder`."""
    free, number = name, 1
    while (folder / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def _is_disk_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or bool(_DISK_FULL.search(str(error)))


def _one_line(error: Exception) -> str:
    """The message without tensorstore's specification; of a long one both ends, as the cause stands last."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.split(r" \[(?:tensorstore_spec|source locations)", text)[0]
    return text if len(text) <= 200 else f"{text[:60]} ... {text[-135:]}"
