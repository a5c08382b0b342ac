"""Storage that fails for a while, on one process or on all, and checkpoints that several processes see differently."""

import contextlib
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from deberta_jax.train.checkpoints.checkpointer import Checkpointer, CheckpointError
from deberta_jax.train.checkpoints.storage_faults import read_fault, write_fault


def noise(seed: int):
    """1.2 MB that does not compress."""
    return {"kernel": jax.random.normal(jax.random.key(seed), (300_000,))}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@contextlib.contextmanager
def small_disk(folder: Path):
    """A file system of 3 MB at `folder`, and a function that mounts it again with other options."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def after(seconds: float, do, *arguments):
    """Calls `do` in a while, beside what the block does."""
    timer = threading.Timer(seconds, do, arguments)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_a_full_disk_that_is_enlarged_costs_one_step(tmp_path):
    said = []
    with small_disk(tmp_path / "disk") as remount:
        folder = tmp_path / "disk" / "run"
        with Checkpointer(folder, keep=9, identity={}, log=said.append, patience=60) as checkpointer:
            for step in (1, 2, 3):
                checkpointer.save(step, noise(step), {})
            with after(2, remount, "size=30m"):
                checkpointer.save(4, noise(4), {})  # learns that step 3 found no room, and waits for some
            assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "4"]
            restored = checkpointer.restore(abstract(noise(0)))
        assert restored.step == 4
        chex.assert_trees_all_equal(restored.state, noise(4))
    assert len(said) == 2
    assert re.search(r"the last good one is step 2: the disk is full; trying again for up to 60 s$", said[0])
    assert re.search(r"^step 4 is in .* after \d+ s of trying$", said[1])


def test_the_last_save_of_a_run_is_tried_again_by_wait(tmp_path):
    said = []
    with small_disk(tmp_path / "disk") as remount:
        folder = tmp_path / "disk" / "run"
        with Checkpointer(folder, keep=9, identity={}, log=said.append, patience=60) as checkpointer:
            for step in (1, 2, 3):
                checkpointer.save(step, noise(step), {"place": step})
            with after(2, remount, "size=30m"):
                checkpointer.wait()
            restored = checkpointer.restore(abstract(noise(0)))
        assert (restored.step, restored.data) == (3, {"place": 3})
        chex.assert_trees_all_equal(restored.state, noise(3))
    assert len(said) == 2


def test_storage_that_is_read_only_for_a_while(tmp_path):
    """As after an error of the disk. Neither a save, nor opening the folder at a restart, ends the run."""
    said = []
    with small_disk(tmp_path / "disk") as remount:
        folder = tmp_path / "disk" / "run"
        with Checkpointer(folder, keep=9, identity={}, log=said.append, patience=60) as checkpointer:
            checkpointer.save(1, noise(1), {})
            checkpointer.wait()
            remount("ro")
            with after(2, remount, "rw"):
                checkpointer.save(2, noise(2), {})
            assert len(said) == 2
            assert re.search(r"the last good one is step 1: .*Read-only file system.*; trying again", said[0])
        remount("ro")
        with (
            after(1, remount, "rw"),
            Checkpointer(folder, keep=9, identity={}, log=said.append, patience=60) as checkpointer,
        ):
            assert checkpointer.restore(abstract(noise(0))).step == 2
        assert len(said) == 3


def test_patience_ends(tmp_path):
    with small_disk(tmp_path / "disk"):
        checkpointer = Checkpointer(tmp_path / "disk" / "run", keep=9, identity={}, log=lambda _: None, patience=1)
        for step in (1, 2, 3):
            checkpointer.save(step, noise(step), {})
        began = time.monotonic()
        with pytest.raises(CheckpointError, match=r"the disk is full; the last good one is step 2; free some space"):
            checkpointer.wait()
        assert time.monotonic() - began < 20
        checkpointer.close()


def test_what_time_does_not_heal_fails_at_once(tmp_path, monkeypatch):
    said = []
    checkpointer = Checkpointer(tmp_path / "run", keep=9, identity={}, log=said.append, patience=60)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._manager._checkpointer._handler, "finalize", refuse)
        checkpointer.save(1, noise(1), {})
        with pytest.raises(CheckpointError, match=r"Permission denied; no checkpoint has been written yet; see that"):
            checkpointer.wait()
    # Nor can it be tried again once a later step has taken the values.
    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._manager._checkpointer._handler, "finalize", fail)
        state = noise(2)
        checkpointer.save(2, state, {})
        jax.tree.map(lambda x: x.delete(), state)
        with pytest.raises(CheckpointError, match=r"Input/output error; no checkpoint"):
            checkpointer.wait()
    checkpointer.close()
    assert said == []
    assert list((tmp_path / "run").iterdir()) == []


def fail(*_, **__):
    raise OSError(errno.EIO, "Input/output error")


def test_an_outage_while_reading_is_not_taken_for_damage(tmp_path, monkeypatch):
    said = []
    with Checkpointer(tmp_path / "run", keep=9, identity={}, log=said.append, patience=60) as checkpointer:
        checkpointer.save(1, noise(1), {})
        checkpointer.save(2, noise(2), {})
        with monkeypatch.context() as patch:
            patch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
            with after(1.5, patch.undo):
                restored = checkpointer.restore(abstract(noise(0)))
    assert restored.step == 2
    assert len(said) == 1
    assert re.search(r"cannot read the checkpoint of step 2 in .*Input/output error; trying again", said[0])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "writing", "reading"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "full", "damage"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"), "full", "damage"),
        (OSError(errno.EIO, "Input/output error"), "passing", "passing"),
        (OSError(errno.ESTALE, "Stale file handle"), "passing", "passing"),
        (ValueError("UNAVAILABLE: HTTP 503"), "passing", "passing"),
        (TimeoutError("no answer"), "passing", "passing"),
        (OSError(errno.EROFS, "Read-only file system"), "passing", "damage"),
        (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), "passing", "damage"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "passing", "damage"),
        (ValueError("PERMISSION_DENIED: HTTP 403"), "denied", "denied"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "denied", "denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "mistake", "damage"),
        (TypeError("not a storage error"), "mistake", "damage"),
    ],
)
def test_what_an_error_means(error, writing, reading):
    assert (write_fault(error), read_fault(error)) == (writing, reading)


PRELUDE = textwrap.dedent(
    """
    import os, sys, threading, time
    import jax
    index, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    jax.config.update("jax_num_cpu_devices", 4 // count)
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index, initialization_timeout=60)
    import jax.numpy as jnp, numpy as np
    from pathlib import Path
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from deberta_jax.train.checkpointing import Checkpointer, CheckpointError

    folder, said = Path(folder), []

    def sharded(value, mesh, spec):
        values = np.arange(4096, dtype=np.float32).reshape(64, 64) + value
        return jax.make_array_from_callback((64, 64), NamedSharding(mesh, spec), lambda index: values[index])

    def make_state(value, mesh):
        specs = {"rows": P("a"), "both": P("a", "b"), "columns": P(None, "b"), "copies": P()}
        return {name: sharded(value, mesh, spec) for name, spec in specs.items()}

    def make_mesh(*shape):
        return jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def abstract(state):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)

    def check(state, value, mesh):
        for name, wanted in make_state(value, mesh).items():
            assert state[name].sharding == wanted.sharding
            for here, there in zip(state[name].addressable_shards, wanted.addressable_shards, strict=True):
                np.testing.assert_array_equal(here.data, there.data)

    def open_folder(folder=folder, **options):
        return Checkpointer(folder, keep=9, identity={}, log=said.append, **options)
    """
)


def run_processes(program: str, folder: Path, *, count: int, arguments: tuple[str, ...] = ()) -> None:
    """Runs `program` after PRELUDE as `count` processes of one job, with four devices in all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(program)]
    children = [
        subprocess.Popen(
            [*command, str(index), str(count), str(port), str(folder), *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for index in range(count)
    ]
    try:
        errors = [child.communicate(timeout=200)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * count, "\n".join(errors)


ONE_FAILS = """
    class Broken:
        # A write of this process: it raises, or takes as long as it may.
        def __init__(self, error): self.error = error
        def cancel(self): pass
        def result(self, timeout=None):
            if self.error is None:
                time.sleep(timeout)
                raise TimeoutError("no answer")
            raise self.error

    def break_writes(checkpointer, error):
        handler = checkpointer._manager._checkpointer._handler
        save = type(handler).async_save.__get__(handler)
        async def async_save(*args, **kwargs):
            return [*await save(*args, **kwargs), Broken(error)]
        handler.async_save = async_save

    def break_commit(checkpointer):
        def finalize(*_):
            raise OSError(5, "Input/output error")
        checkpointer._manager._checkpointer._handler.finalize = finalize

    def repair(checkpointer):
        vars(checkpointer._manager._checkpointer._handler).pop("async_save", None)
        vars(checkpointer._manager._checkpointer._handler).pop("finalize", None)

    def refused(call):
        began = time.monotonic()
        try:
            call()
        except CheckpointError as error:
            return str(error), time.monotonic() - began
        raise AssertionError("no CheckpointError")

    def steps():
        multihost_utils.sync_global_devices("steps")
        return sorted(path.name for path in folder.iterdir())

    mesh = make_mesh(2, 2)
    with open_folder(timeout=60, patience=60) as checkpointer:
        checkpointer.save(1, make_state(1, mesh), {})
        # One process cannot write: all learn of it long before the time-out, and the next step is written.
        if index == 1:
            break_writes(checkpointer, OSError(5, "Input/output error"))
        checkpointer.save(2, make_state(2, mesh), {})
        time.sleep(1)
        repair(checkpointer)
        began = time.monotonic()
        checkpointer.save(3, make_state(3, mesh), {})
        assert time.monotonic() - began < 25, time.monotonic() - began
        assert steps() == ["1", "3"], steps()
        # Process 0 cannot commit: the others learn of it, and wait() writes the same step again.
        if index == 0:
            break_commit(checkpointer)
            threading.Timer(1.5, repair, [checkpointer]).start()
        state = make_state(4, mesh)
        checkpointer.save(4, state, {})
        checkpointer.wait()
        assert steps() == ["1", "3", "4"], steps()
        # One process may not write: all give up at once, and all say who it was.
        if index == 1:
            break_writes(checkpointer, PermissionError(13, "Permission denied"))
        checkpointer.save(5, state, {})
        message, seconds = refused(checkpointer.wait)
        assert "(process 1): [Errno 13] Permission denied; the last good one is step 4; see that" in message, message
        assert seconds < 15, seconds
        repair(checkpointer)
        check(checkpointer.restore(abstract(state)).state, 4, mesh)
        multihost_utils.sync_global_devices("restored")
        (folder / "1").exists() and index == 0 and __import__("shutil").rmtree(folder / "1")
    # The storage of one process never answers: an end after the time-out, not a wait for ever.
    with open_folder(timeout=4, patience=0) as checkpointer:
        if index == 1:
            break_writes(checkpointer, None)
        checkpointer.save(6, state, {})
        message, seconds = refused(checkpointer.wait)
        assert 2 < seconds < 25, seconds
        repair(checkpointer)
        checkpointer.save(7, state, {})  # and the processes still know of each other
    assert steps() == ["3", "4", "7"], steps()
    if index == 0:
        assert len(said) == 4, said
        assert "(process 1): [Errno 5] Input/output error; trying again for up to 60 s" in said[0], said
        assert "the last good one is step 1" in said[0], said
        assert said[1].startswith("step 3 is in "), said
        assert "(process 0): [Errno 5] Input/output error; trying again" in said[2], said
        assert said[3].startswith("step 4 is in "), said
    else:
        assert said == []
"""


@pytest.mark.slow
def test_a_write_that_fails_on_one_process_only(tmp_path):
    run_processes(ONE_FAILS, tmp_path / "run", count=2)


SEEN_DIFFERENTLY = """
    import shutil

    mesh = make_mesh(2, 2)
    with open_folder() as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step, mesh), {"place": step})

    # Process 1 has a view of its own, of links, as of a file system that shows a new folder late.
    mine = folder if index == 0 else folder.with_name("view")
    if index == 1:
        mine.mkdir()
        (mine / "1").symlink_to(folder / "1")
        threading.Timer(4, lambda: (mine / "2").symlink_to(folder / "2")).start()
    with open_folder(mine, patience=60) as checkpointer:
        assert len(checkpointer._manager.all_steps()) == 2 - index
        restored = checkpointer.restore(abstract(make_state(0, mesh)))
        assert (restored.step, restored.data) == (2, {"place": 2})
        check(restored.state, 2, mesh)
    if index == 0:
        assert len(said) == 1, said
        assert "(process 1) cannot see step 2 in" in said[0], said

    # It never shows: an error that names the host, and the step is not taken for damaged.
    if index == 1:
        (mine / "2").unlink()
    with open_folder(mine, patience=1) as checkpointer:
        try:
            checkpointer.restore(abstract(make_state(0, mesh)))
        except CheckpointError as error:
            assert "(process 1) cannot see step 2 in" in str(error), error
            assert "give all hosts one shared folder" in str(error), error
        else:
            raise AssertionError("no CheckpointError")

    # What process 1 reads is cut off; process 0 reads what was written. Both use the step before.
    if index == 1:
        shutil.copytree(folder / "2", mine / "2")
        for part in (mine / "2").rglob("d/*"):
            os.truncate(part, part.stat().st_size // 2)
    del said[:]
    multihost_utils.sync_global_devices("damaged")
    with open_folder(mine, patience=5) as checkpointer:
        restored = checkpointer.restore(abstract(make_state(0, mesh)))
        assert restored.step == 1
        check(restored.state, 1, mesh)
    if index == 0:
        assert len(said) == 1, said
        assert "step 2 in" in said[0] and "is damaged (on " in said[0] and "(process 1): " in said[0], said
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"]
    else:
        assert said == []
"""


@pytest.mark.slow
def test_a_step_that_processes_see_differently(tmp_path):
    run_processes(SEEN_DIFFERENTLY, tmp_path / "run", count=2)


RESIZED = """
    shape, before = (int(sys.argv[5]), int(sys.argv[6])), int(sys.argv[7])
    mesh = make_mesh(*shape)
    with open_folder() as checkpointer:
        restored = checkpointer.restore(abstract(make_state(0, mesh)))
        if before:
            assert (restored.step, restored.data) == (before, {"place": before})
            check(restored.state, before, mesh)
            kept = jax.tree.map(lambda x: x.sharding, restored.state)
            state = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), out_shardings=kept)(restored.state)
        else:
            assert restored is None
            state = make_state(1, mesh)
        check(state, before + 1, mesh)
        checkpointer.save(before + 1, state, {"place": before + 1})
    assert said == [], said
"""


@pytest.mark.slow
def test_a_checkpoint_goes_from_mesh_to_mesh(tmp_path):
    """4 processes -> 2 -> 1 -> 4, bit for bit, with the checksums of one mesh verified on the next."""
    for before, (count, shape) in enumerate([(4, (2, 2)), (2, (1, 4)), (1, (4, 1)), (4, (2, 2))]):
        arguments = (*map(str, shape), str(before))
        run_processes(RESIZED, tmp_path / "run", count=count, arguments=arguments)
    values = jnp.arange(4096, dtype=jnp.float32).reshape(64, 64) + 4
    state = dict.fromkeys(("rows", "both", "columns", "copies"), values)
    with Checkpointer(tmp_path / "run", keep=9, identity={}) as checkpointer:
        chex.assert_trees_all_equal(checkpointer.restore(abstract(state)).state, state)
