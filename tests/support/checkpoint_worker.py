"""Programs that several processes run together to save and restore one folder of checkpoints.

As `cluster.cluster` starts them, with four devices in all:

    python -m tests.support.checkpoint_worker PROGRAM FOLDER [ARGUMENTS...] --hosts....
"""

import argparse
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deberta_jax.train.checkpoints import storage_faults
from deberta_jax.train.checkpoints.checkpointer import Checkpointer, CheckpointError

from .checkpoint_states import abstract
from .fake_time import FakeTime


def values_of(step: int) -> np.ndarray:
    return np.arange(4096, dtype=np.float32).reshape(64, 64) + step


def make_mesh(*shape: int) -> Mesh:
    return jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def make_state(step: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a state whose leaves all hold `values_of(step)`, each sharded in another way."""
    values = values_of(step)
    specs = {"rows": P("a"), "both": P("a", "b"), "columns": P(None, "b"), "copies": P()}
    return {
        name: jax.make_array_from_callback((64, 64), NamedSharding(mesh, spec), lambda index: values[index])
        for name, spec in specs.items()
    }


def check(state: dict[str, jax.Array], step: int, mesh: Mesh) -> None:
    for name, wanted in make_state(step, mesh).items():
        assert state[name].sharding == wanted.sharding
        for shard, wanted_shard in zip(state[name].addressable_shards, wanted.addressable_shards, strict=True):
            np.testing.assert_array_equal(shard.data, wanted_shard.data)


class BrokenWrite:
    """The write of a process that raises an error, or takes as long as it may (None), instead of Orbax's future."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def cancel(self) -> None: ...

    def result(self, timeout: float | None = None) -> None:
        if self.error is None:
            assert timeout is not None
            time.sleep(timeout)
            raise TimeoutError("no answer")
        raise self.error


def break_writes(checkpointer: Checkpointer, error: Exception | None) -> None:
    handler = checkpointer._manager._checkpointer._handler
    save = type(handler).async_save.__get__(handler)

    async def async_save(*args: Any, **kwargs: Any) -> list[Any]:
        return [*await save(*args, **kwargs), BrokenWrite(error)]

    handler.async_save = async_save


def break_commit(checkpointer: Checkpointer) -> None:
    def finalize(*_: object) -> None:
        raise OSError(5, "Input/output error")

    checkpointer._manager._checkpointer._handler.finalize = finalize


def repair(checkpointer: Checkpointer) -> None:
    vars(checkpointer._manager._checkpointer._handler).pop("async_save", None)
    vars(checkpointer._manager._checkpointer._handler).pop("finalize", None)


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except CheckpointError as error:
        return str(error)
    raise AssertionError("no CheckpointError")


def steps_in(folder: Path) -> list[str]:
    multihost_utils.sync_global_devices("steps")
    return sorted(path.name for path in folder.iterdir())


def one_process_fails(folder: Path) -> None:
    """Writes that fail on one process only: all processes notice, retry together, and name that process.

    They notice at once and not by a time-out. On process 0, a time-out would be the fault that all agree on.
    """
    index, mesh, log = jax.process_index(), make_mesh(2, 2), []
    clock = FakeTime()
    storage_faults.time = clock  # type: ignore[assignment]
    with Checkpointer(folder, keep=9, identity={}, log=log.append, patience=60) as checkpointer:
        clock.on_sleep = lambda: repair(checkpointer)
        checkpointer.save(1, make_state(1, mesh), {})
        # Process 1 cannot write: the next save writes its own step instead.
        if index == 1:
            break_writes(checkpointer, OSError(5, "Input/output error"))
        checkpointer.save(2, make_state(2, mesh), {})
        checkpointer.save(3, make_state(3, mesh), {})
        assert steps_in(folder) == ["1", "3"], steps_in(folder)
        # Process 0 cannot commit: `wait` writes the same step again.
        if index == 0:
            break_commit(checkpointer)
        state = make_state(4, mesh)
        checkpointer.save(4, state, {})
        checkpointer.wait()
        assert steps_in(folder) == ["1", "3", "4"], steps_in(folder)
        # Process 1 is not allowed to write: all give up without a retry.
        if index == 1:
            break_writes(checkpointer, PermissionError(13, "Permission denied"))
        pauses = len(clock.pauses)
        checkpointer.save(5, state, {})
        message = error_of(checkpointer.wait)
        assert "(process 1): [Errno 13] Permission denied; the last good one is step 4; see that" in message, message
        assert len(clock.pauses) == pauses
        repair(checkpointer)
        check(checkpointer.restore(abstract(state)).state, 4, mesh)
    # The storage of process 1 never answers: all give up after the time-out.
    with Checkpointer(folder, keep=9, identity={}, log=log.append, patience=0, timeout=3) as checkpointer:
        if index == 1:
            break_writes(checkpointer, None)
        checkpointer.save(6, state, {})
        message = error_of(checkpointer.wait)
        assert re.search("no answer|timed out", message, re.IGNORECASE), message
        repair(checkpointer)
        checkpointer._manager._checkpointer._async_manager._timeout_secs = 300
        checkpointer._timeout = 300
        checkpointer.save(7, state, {})  # the processes still meet at the same barriers
    assert steps_in(folder) == ["1", "3", "4", "7"], steps_in(folder)
    if index == 0:
        assert len(log) == 4, log
        assert "(process 1): [Errno 5] Input/output error; trying again for up to 60 s" in log[0], log
        assert "the last good one is step 1" in log[0], log
        assert log[1].startswith("step 3 is in "), log
        assert "(process 0): [Errno 5] Input/output error; trying again" in log[2], log
        assert log[3].startswith("step 4 is in "), log
    else:
        assert log == []


def seen_differently(folder: Path) -> None:
    """Process 1 sees the folder through links of its own: late, not at all, and damaged."""
    index, mesh, log = jax.process_index(), make_mesh(2, 2), []
    clock = FakeTime()
    storage_faults.time = clock  # type: ignore[assignment]

    def open_folder(where: Path, patience: float) -> Checkpointer:
        return Checkpointer(where, keep=9, identity={}, log=log.append, patience=patience)

    with open_folder(folder, patience=60) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step, mesh), {"place": step})
    # A network file system may show a new folder late.
    view = folder if index == 0 else folder.with_name("view")
    if index == 1:
        view.mkdir()
        (view / "1").symlink_to(folder / "1")
        clock.on_sleep = lambda: (view / "2").symlink_to(folder / "2")
    with open_folder(view, patience=60) as checkpointer:
        assert len(checkpointer._manager.all_steps()) == 2 - index
        restored = checkpointer.restore(abstract(make_state(0, mesh)))
        assert (restored.step, restored.data) == (2, {"place": 2})
        check(restored.state, 2, mesh)
    if index == 0:
        assert len(log) == 1, log
        assert "(process 1) cannot see step 2 in" in log[0], log
    # It never shows it: the error names the host, and the step does not count as damaged.
    clock.on_sleep = lambda: None
    if index == 1:
        (view / "2").unlink()
    with open_folder(view, patience=1) as checkpointer:
        message = error_of(lambda: checkpointer.restore(abstract(make_state(0, mesh))))
        assert "(process 1) cannot see step 2 in" in message, message
        assert "give all hosts one shared folder" in message, message
    # Process 1 reads a file that is cut off, process 0 what was written: both use the step before.
    if index == 1:
        shutil.copytree(folder / "2", view / "2")
        for path in (view / "2").rglob("d/*"):
            os.truncate(path, path.stat().st_size // 2)
    log.clear()
    multihost_utils.sync_global_devices("damaged")
    with open_folder(view, patience=5) as checkpointer:
        restored = checkpointer.restore(abstract(make_state(0, mesh)))
        assert restored.step == 1
        check(restored.state, 1, mesh)
    if index == 0:
        assert len(log) == 1, log
        assert re.search(r"step 2 in .* is damaged \(on .*\(process 1\): ", log[0]), log
    else:
        assert log == []
    assert steps_in(folder) == ["1", "2.damaged"]
    # The number of the damaged step can be saved again.
    with open_folder(folder, patience=5) as checkpointer:
        checkpointer.save(2, make_state(2, mesh), {"place": 2})


def add_one(folder: Path, *mesh_shape: str) -> None:
    """Restores the newest step N on a mesh and saves the state of step N + 1; step 1 if there is none."""
    mesh, log = make_mesh(*map(int, mesh_shape)), []
    with Checkpointer(folder, keep=9, identity={}, log=log.append) as checkpointer:
        restored = checkpointer.restore(abstract(make_state(0, mesh)))
        step, state = 1, make_state(1, mesh)
        if restored is not None:
            assert restored.data == {"place": restored.step}
            check(restored.state, restored.step, mesh)
            step = restored.step + 1
            shardings = jax.tree.map(lambda x: x.sharding, restored.state)
            plus_one = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), out_shardings=shardings)
            state = plus_one(restored.state)
        check(state, step, mesh)
        checkpointer.save(step, state, {"place": step})
    assert log == [], log


PROGRAMS = {program.__name__: program for program in (one_process_fails, seen_differently, add_one)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--hosts.coordinator", dest="coordinator")
    parser.add_argument("--hosts.count", dest="count", type=int)
    parser.add_argument("--hosts.index", dest="index", type=int)
    options = parser.parse_args()
    jax.distributed.initialize(options.coordinator, options.count, options.index, initialization_timeout=300)
    try:
        PROGRAMS[options.program](options.folder, *options.arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the normal exit would wait for the other process, which hangs in a collective
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
