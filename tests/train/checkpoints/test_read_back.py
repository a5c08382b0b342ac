"""A save counts once it was read back, and a folder of any name can be read again."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.checkpoints import storage_faults
from deberta_jax.train.checkpoints.checkpointer import Checkpointer, CheckpointError

from ...support.checkpoint_states import abstract, make_state
from ...support.fake_time import fake_time

ODD_NAMES = [
    "exp[1]",
    "a]b",
    "*",
    "a?b",
    "[!x]",
    "100%",
    "{a,b}",
    "$HOME",
    "~",
    "-x",
    "a b",
    "naïve-日本",
    "a'b\"c",
    "a\nb",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_any_name_is_read_again_also_after_a_rename(open_run, tmp_path: Path, name: str) -> None:
    with open_run(tmp_path / name / "checkpoints") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), {"place": step})
    (tmp_path / name).rename(tmp_path / "renamed")
    for folder in ("renamed", name):
        if folder == name:
            (tmp_path / "renamed").rename(tmp_path / name)
        restored = open_run(tmp_path / folder / "checkpoints").restore(abstract(make_state(0)))
        assert (restored.step, restored.data) == (2, {"place": 2})
        chex.assert_trees_all_equal(restored.state, make_state(2))


@pytest.mark.parametrize(
    ("name", "problem"), [("a\\b", "a backslash"), ("exp\\", "a backslash"), ("caf\udce9", "a name that is not UTF-8")]
)
def test_a_name_that_cannot_be_stored_in_is_refused_at_the_start(open_run, tmp_path: Path, name, problem) -> None:
    with pytest.raises(UserError, match=f"has {problem}"):
        open_run(tmp_path / name / "checkpoints", patience=600)
    assert list(tmp_path.iterdir()) == []


def damage_after_commit(checkpointer: Checkpointer, damage: Callable[[Path], object]) -> None:
    """Lets every save of a checkpointer be damaged once it is committed, before it is read back."""
    wait = checkpointer._background.wait

    def wait_and_damage(*seconds: float) -> None:
        wait(*seconds)
        step = checkpointer._pending
        assert step is not None
        damage(Path(checkpointer._folder) / str(step.step))

    checkpointer._background.wait = wait_and_damage


def lose_arrays(step: Path) -> None:
    """What Orbax did to a folder such as `exp[1]`: it skipped the merge of the parts."""
    (step / "state" / "manifest.ocdbt").unlink()
    shutil.rmtree(step / "state" / "d")


def flip_bits(step: Path) -> None:
    for file in (step / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 255
            file.write_bytes(content)


def replace_manifest(step: Path) -> None:
    file = step / "meta" / "metadata"
    file.write_text(file.read_text().replace("true", "false"))


@pytest.mark.parametrize("damage", [lose_arrays, flip_bits, replace_manifest, shutil.rmtree])
def test_a_save_that_cannot_be_read_back_is_written_again(
    open_run, log: list[str], tmp_path: Path, monkeypatch, damage: Callable[[Path], object]
) -> None:
    with open_run(patience=60) as checkpointer:
        checkpointer.save(1, make_state(1), {"flag": True})
        checkpointer.wait()
        healthy = checkpointer._background.wait
        damage_after_commit(checkpointer, damage)
        fake_time(monkeypatch, storage_faults, on_sleep=lambda: setattr(checkpointer._background, "wait", healthy))
        checkpointer.save(2, make_state(2), {"flag": True})
        checkpointer.wait()
        assert checkpointer.restore(abstract(make_state(0))).step == 2
    assert len(log) == 2
    assert re.search(r"could not write into .*: the last good one is step 1: .*; trying again for up to 60 s$", log[0])
    assert re.search(r"^step 2 is in .* after \d+ s of retries$", log[1])


@pytest.mark.parametrize("keep", [1, 2])
def test_the_old_step_stays_until_the_new_one_was_read_back(open_run, tmp_path: Path, keep: int) -> None:
    checkpointer = open_run(keep=keep)
    for step in (1, 2):
        checkpointer.save(step, make_state(step), {})
        checkpointer.wait()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["1", "2"][-keep:]
    damage_after_commit(checkpointer, flip_bits)
    checkpointer.save(3, make_state(3), {})
    with pytest.raises(CheckpointError, match=r"the last good one is step 2; see that the folder is writable"):
        checkpointer.wait()
    assert open_run(keep=keep).restore(abstract(make_state(0))).step == 2


def test_reading_back_does_not_need_the_buffers(open_run) -> None:
    checkpointer = open_run()
    state = make_state(1)
    checkpointer.save(1, state, {})
    checkpointer._background.wait()
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    checkpointer.wait()
    assert open_run().restore(abstract(make_state(0))).step == 1
