"""Saving: which steps are kept, donated buffers, and storage that fails for a while or for good."""

import contextlib
import errno
import functools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.train.checkpoints import background_save, storage_faults
from deberta_jax.train.checkpoints.checkpointer import Checkpointer, CheckpointError

from ...support.checkpoint_states import abstract, make_state, noise
from ...support.fake_time import fake_time
from ...support.small_disk import mounted


def saved_steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_newest_steps_are_kept(open_run, tmp_path: Path) -> None:
    with open_run(keep=2) as checkpointer:
        for step in (10, 20, 30, 40):
            checkpointer.save(step, make_state(step), {})
    assert saved_steps(tmp_path / "run") == ["30", "40"]


def test_the_state_may_be_donated_right_after_save(open_run) -> None:
    """Later steps overwrite the donated buffers while the writer works: it has to write the values of the call."""

    @functools.partial(jax.jit, donate_argnums=0)
    def next_step(state: Any) -> Any:
        return jax.tree.map(lambda x: x + jnp.ones_like(x), state)

    made_by_numpy = jax.device_put({"aliased": np.zeros((1024, 512), np.float32)})
    state = {
        **made_by_numpy,
        "wide": jnp.zeros((1024, 2048)),
        "half": jnp.zeros((512, 512), jnp.bfloat16),
        "n": jnp.int32(0),
    }
    with open_run(keep=10) as checkpointer:
        for step in (0, 10, 20):
            checkpointer.save(step, state, {})
            for _ in range(10):
                state = next_step(state)
    template = abstract(state)
    folder = checkpointer._manager.directory
    for step in (20, 10, 0):
        restored = open_run(keep=10).restore(template)
        assert restored.step == step
        for leaf in jax.tree.leaves(restored.state):
            assert (np.asarray(leaf) == step).all()
        shutil.rmtree(folder / str(step))


def test_a_call_that_orbax_does_not_know_is_not_taken_for_a_fault_of_the_folder(
    open_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_manager(*_: Any, **__: Any) -> None:
        raise TypeError("FileOptions.__init__() got an unexpected keyword argument")

    monkeypatch.setattr("deberta_jax.train.checkpoints.checkpointer.open_manager", open_manager)
    with pytest.raises(TypeError, match="unexpected keyword"):
        open_run()


def test_wrong_use_is_refused(open_run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0; it must be at least 1"):
        open_run(keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot keep checkpoints in .*file: not a directory"):
        open_run(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot keep checkpoints in .*file/run: .*Not a directory"):
        open_run(tmp_path / "file" / "run")
    checkpointer = open_run()
    checkpointer.save(1, make_state(1), {})
    with pytest.raises(ValueError, match="already holds a checkpoint of step 1"):
        checkpointer.save(1, make_state(1), {})


# ---------------------------------------------------------------- storage that fails


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], object]]:
    """Mounts a file system of 3 MB. Yields a function that mounts it again with other options."""
    with mounted(folder, megabytes=3):
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fail_with(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@contextlib.contextmanager
def failing_commit(checkpointer: Checkpointer, error: Exception) -> Iterator[pytest.MonkeyPatch]:
    """Lets every write fail at its end, in the background."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer._manager._checkpointer._handler, "finalize", fail_with(error))
        yield patch


def test_a_full_disk_is_reported_and_the_last_good_step_stays(open_run, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk"):
        folder = tmp_path / "disk" / "run"
        checkpointer = open_run(folder)
        for step in (1, 2, 3):
            checkpointer.save(step, noise(step), {})  # asynchronous: that step 3 failed shows at the next call
        with pytest.raises(
            CheckpointError, match=r"disk/run: the disk is full; the last good one is step 2; free some"
        ):
            checkpointer.save(4, noise(4), {})
        assert checkpointer.latest_step() == 2
        shutil.rmtree(folder / "1")
        checkpointer.save(4, noise(4), {})  # there is room again
        checkpointer.close()
        assert open_run(folder).restore(abstract(noise(0))).step == 4


def test_a_full_disk_that_is_enlarged_costs_one_step(open_run, log: list[str], tmp_path: Path, monkeypatch) -> None:
    with small_disk(tmp_path / "disk") as remount:
        folder = tmp_path / "disk" / "run"
        fake_time(monkeypatch, storage_faults, on_sleep=lambda: remount("size=30m"))
        with open_run(folder, keep=9, patience=60) as checkpointer:
            for step in (1, 2, 3, 4):
                checkpointer.save(step, noise(step), {})
            assert saved_steps(folder) == ["1", "2", "4"]
            restored = checkpointer.restore(abstract(noise(0)))
        assert restored.step == 4
        chex.assert_trees_all_equal(restored.state, noise(4))
    assert len(log) == 2
    assert re.search(r"the last good one is step 2: the disk is full; trying again for up to 60 s$", log[0])
    assert re.search(r"^step 4 is in .* after \d+ s of retries$", log[1])


def test_wait_retries_the_last_save_of_a_run(open_run, log: list[str], monkeypatch) -> None:
    with open_run(patience=60) as checkpointer, failing_commit(checkpointer, OSError(5, "Input/output error")) as patch:
        fake_time(monkeypatch, storage_faults, on_sleep=patch.undo)
        checkpointer.save(1, make_state(1), {"place": 1})
        checkpointer.wait()
        restored = checkpointer.restore(abstract(make_state(0)))
    assert (restored.step, restored.data) == (1, {"place": 1})
    chex.assert_trees_all_equal(restored.state, make_state(1))
    assert len(log) == 2


def test_storage_that_is_read_only_for_a_while(open_run, log: list[str], tmp_path: Path, monkeypatch) -> None:
    """As after an error of the disk. Neither a save nor opening the folder at a restart ends the run."""
    with small_disk(tmp_path / "disk") as remount:
        folder = tmp_path / "disk" / "run"
        fake_time(monkeypatch, storage_faults, on_sleep=lambda: remount("rw"))
        with open_run(folder, patience=60) as checkpointer:
            checkpointer.save(1, noise(1), {})
            checkpointer.wait()
            remount("ro")
            checkpointer.save(2, noise(2), {})
            assert len(log) == 2
            assert re.search(r"the last good one is step 1: .*Read-only file system.*; trying again", log[0])
        remount("ro")
        with open_run(folder, patience=60) as checkpointer:
            assert checkpointer.restore(abstract(noise(0))).step == 2
        assert len(log) == 3
        assert re.search(r"cannot keep checkpoints in .*Read-only file system.*; trying again", log[2])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; the last good one is step 1"),
        (ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; the last good one is step 1; see that the"),
    ],
)
def test_a_failed_write_is_raised_by_the_next_wait(open_run, monkeypatch, error: Exception, message: str) -> None:
    clock = fake_time(monkeypatch, storage_faults)
    checkpointer = open_run(patience=5)
    checkpointer.save(1, make_state(1), {})
    checkpointer.wait()
    with failing_commit(checkpointer, error):
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(CheckpointError, match=re.escape(message)):
            checkpointer.wait()
    assert clock.now == 1000 + 5
    checkpointer.close()
    assert open_run().restore(abstract(make_state(0))).step == 1


def test_what_retries_cannot_repair_fails_at_once(open_run, log: list[str], tmp_path: Path) -> None:
    checkpointer = open_run(patience=60)
    with failing_commit(checkpointer, PermissionError(errno.EACCES, "Permission denied")):
        checkpointer.save(1, make_state(1), {})
        with pytest.raises(CheckpointError, match=r"Permission denied; no checkpoint has been written yet; see that"):
            checkpointer.wait()
    # Nor can a save be retried once its values were donated to a later step.
    with failing_commit(checkpointer, OSError(errno.EIO, "Input/output error")):
        state = make_state(2)
        checkpointer.save(2, state, {})
        jax.tree.map(lambda x: x.delete(), state)
        with pytest.raises(CheckpointError, match=r"Input/output error; no checkpoint"):
            checkpointer.wait()
    checkpointer.close()
    assert log == []
    assert saved_steps(tmp_path / "run") == []


def test_late_errors_of_a_failed_save_are_not_those_of_the_next_one(open_run, tmp_path: Path, monkeypatch) -> None:
    """Orbax still writes the metadata of the failed step when its folder is removed."""
    checkpointer = open_run(patience=60)
    store = checkpointer._manager._checkpointer._metadata_store._store_impl
    update = store.update

    def update_late(*arguments: Any, **options: Any) -> None:
        time.sleep(0.3)
        update(*arguments, **options)

    monkeypatch.setattr(type(store), "update", lambda _, *arguments, **options: update_late(*arguments, **options))
    with failing_commit(checkpointer, PermissionError(errno.EACCES, "Permission denied")):
        checkpointer.save(1, make_state(1), {})
        with pytest.raises(CheckpointError, match="Permission denied"):
            checkpointer.wait()
    checkpointer.save(2, make_state(2), {})
    checkpointer.wait()
    assert saved_steps(tmp_path / "run") == ["2"]


def test_an_old_step_that_cannot_be_removed_is_only_logged(open_run, log: list[str], monkeypatch) -> None:
    checkpointer = open_run(keep=2)
    for step in (1, 2):
        checkpointer.save(step, make_state(step), {})
    checkpointer.wait()
    refused = fail_with(PermissionError(errno.EACCES, "Permission denied"))
    monkeypatch.setattr(checkpointer._manager._checkpoint_deleter, "delete_steps", refused)
    checkpointer.save(3, make_state(3), {})
    checkpointer.wait()
    assert checkpointer.latest_step() == 3
    assert len(log) == 1
    assert re.search(r"step 3 is in .*, but an old step could not be removed: .*Permission denied", log[0])


def save_and_fail(checkpointer: Checkpointer, step: int) -> None:
    with checkpointer:
        checkpointer.save(step, make_state(step), {})
        raise KeyError("a failure of training")


def test_a_run_that_fails_lets_its_last_save_end(open_run, log: list[str]) -> None:
    with pytest.raises(KeyError):
        save_and_fail(open_run(), 1)
    assert open_run().restore(abstract(make_state(0))).step == 1
    checkpointer = open_run()
    with failing_commit(checkpointer, OSError(errno.EIO, "Input/output error")), pytest.raises(KeyError):
        save_and_fail(checkpointer, 2)
    assert len(log) == 1
    assert re.search(r"could not write a checkpoint .*Input/output error; the last good one is step 1$", log[0])


def test_storage_that_never_answers_is_given_up(open_run, monkeypatch) -> None:
    """The thread that waits for it cannot be ended, so closing does not wait for it either."""
    reached, released = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        reached.set()
        released.wait()
        raise OSError(errno.EIO, "Input/output error")

    def let_time_pass() -> None:
        reached.wait()
        clock.now += 100

    checkpointer = open_run(patience=60, timeout=300)
    monkeypatch.setattr(checkpointer._manager._checkpointer._handler, "finalize", hang)
    clock = fake_time(monkeypatch, background_save, on_sleep=let_time_pass)
    checkpointer.save(1, make_state(1), {})
    with pytest.raises(CheckpointError, match=r"storage has not answered for 700 s; no checkpoint has been written"):
        checkpointer.wait()
    checkpointer.close()
    released.set()
    with pytest.raises(OSError, match="Input/output error"):
        checkpointer._manager.wait_until_finished()
    with contextlib.suppress(FileNotFoundError):  # Orbax may find the folder of the failed save gone
        checkpointer._manager.close()
