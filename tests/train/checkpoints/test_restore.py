"""Restoring: what was saved comes back, damaged steps are skipped, and other runs are refused."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from deberta_jax.train.checkpoints import restore, storage_faults
from deberta_jax.train.checkpoints.storage_faults import CheckpointError

from ...support.checkpoint_states import abstract, make_state
from ...support.fake_time import fake_time


def test_restore_returns_saved_values_dtypes_containers_and_data(open_run, log: list[str]) -> None:
    state = make_state(3)
    state["params"]["dense"]["kernel"] = jax.random.normal(jax.random.key(0), (300, 40))
    with open_run() as first:
        assert first.latest_step() is None
        assert first.restore(abstract(state)) is None
        first.save(4, state, {"next_index": 12, "epoch": {"seed": 7}})
        assert first.latest_step() == 4
    restored = open_run().restore(abstract(state))
    assert restored is not None
    assert restored.step == 4
    assert restored.data == {"next_index": 12, "epoch": {"seed": 7}}
    chex.assert_trees_all_equal(restored.state, state)
    chex.assert_trees_all_equal_dtypes(restored.state, state)
    assert log == []


def test_dtypes_and_shardings_are_those_of_the_abstract_state(open_run) -> None:
    state = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
    with open_run() as first:
        first.save(1, state, {})
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    restored = open_run().restore({"kernel": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=sharding)})
    assert restored.state["kernel"].sharding == sharding
    chex.assert_trees_all_equal(restored.state["kernel"], state["kernel"].astype(jnp.bfloat16))


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def change_a_stored_value(step_folder: Path) -> None:
    """Writes another value of the same shape into the array files, which Orbax restores without an error."""
    shutil.rmtree(step_folder / "state")
    state = make_state(1)
    state["params"]["dense"]["kernel"] = state["params"]["dense"]["kernel"].at[17, 3].set(1 + 2**-20)
    with ocp.StandardCheckpointer() as writer:
        writer.save(step_folder / "state", state)


def replace_in_meta(old: str, new: str) -> Callable[[Path], object]:
    return lambda step: (step / "meta/metadata").write_text((step / "meta/metadata").read_text().replace(old, new))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a changed value": change_a_stored_value,
    "array data truncated": lambda step: os.truncate(step / "state/manifest.ocdbt", 10),
    "array data missing": lambda step: (step / "state/manifest.ocdbt").unlink(),
    "largest file truncated": lambda step: os.truncate(largest_file(step), largest_file(step).stat().st_size // 2),
    "meta truncated": lambda step: os.truncate(step / "meta/metadata", 20),
    "meta missing": lambda step: shutil.rmtree(step / "meta"),
    "meta altered": replace_in_meta("next_index", "next_indey"),
    "meta not UTF-8": lambda step: (step / "meta/metadata").write_bytes(b"\xff\xfe"),
    "meta not a manifest": lambda step: (step / "meta/metadata").write_text("[1, 2]"),
    "half deleted": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_renamed_and_the_one_before_used(
    damage: str, open_run, log: list[str], two_steps: Path
) -> None:
    DAMAGES[damage](two_steps / "2")
    checkpointer = open_run()
    restored = checkpointer.restore(abstract(make_state(0)))
    assert (restored.step, restored.data) == (1, {"next_index": 1})
    chex.assert_trees_all_equal(restored.state, make_state(0))
    assert len(log) == 1
    assert re.search(r"step 2 .* is damaged \(.+\): resuming from step 1 .* kept as 2\.damaged$", log[0])
    assert (two_steps / "2.damaged").is_dir()
    assert checkpointer.latest_step() == 1


def test_the_number_of_a_damaged_step_can_be_saved_again(open_run, two_steps: Path) -> None:
    DAMAGES["meta missing"](two_steps / "2")
    with open_run() as checkpointer:
        checkpointer.restore(abstract(make_state(0)))
        checkpointer.save(2, make_state(5), {})
    assert open_run().restore(abstract(make_state(0))).state["step"] == 5
    assert (two_steps / "2.damaged").is_dir()


def test_a_second_damage_of_the_same_step_keeps_both(open_run, two_steps: Path) -> None:
    (two_steps / "2.damaged").mkdir()
    DAMAGES["meta missing"](two_steps / "2")
    assert open_run().restore(abstract(make_state(0))).step == 1
    assert {path.name for path in two_steps.iterdir()} == {"1", "2.damaged", "2.damaged-2"}


def test_an_error_if_all_steps_are_damaged_which_keep_their_names(open_run, two_steps: Path) -> None:
    """Without any checkpoint, the next start would begin from step 0."""
    for step in ("1", "2"):
        DAMAGES["meta missing"](two_steps / step)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"every checkpoint .* is damaged \(step 2: .*; step 1: .*another --output"
        ):
            open_run().restore(abstract(make_state(0)))
    assert sorted(path.name for path in two_steps.iterdir()) == ["1", "2"]


def test_a_damaged_step_that_cannot_be_renamed_is_an_error(open_run, two_steps: Path, monkeypatch) -> None:
    DAMAGES["meta missing"](two_steps / "2")
    checkpointer = open_run()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(checkpointer._manager.directory), "rename", refuse)
    with pytest.raises(CheckpointError, match=r"could not rename the damaged step 2 in .* to 2\.damaged: .*denied"):
        checkpointer.restore(abstract(make_state(0)))


def test_another_configuration_is_refused_before_any_array_is_read(open_run, two_steps: Path) -> None:
    shutil.rmtree(two_steps / "2/state")
    other = {"model": {"num_hidden_layers": 12, "conv_act": "gelu"}, "tokenizer": "ab12", "seed": 1}
    with pytest.raises(CheckpointError) as error:
        open_run(identity=other).restore(abstract(make_state(0)))
    message = str(error.value)
    assert "model.num_hidden_layers is 6 there, 12 here, model.conv_act is null there" in message
    assert "optimizer is {" in message
    assert "and 1 more" in message
    assert "use another --output, or the same settings" in message
    assert (two_steps / "2").is_dir()


def test_other_inputs_under_the_same_names_are_refused(open_run, tmp_path: Path, log: list[str]) -> None:
    digests = {"training examples": "aa", "weights of the model": "bb"}
    run = open_run(identity={"seed": 1, "digests": digests})
    run.save(1, make_state(1), {})
    run.close()
    same = {"seed": 1, "digests": {"weights of the model": "bb", "training examples": "aa"}}
    assert open_run(identity=same).restore(abstract(make_state(0))).step == 1
    other = {"seed": 1, "digests": digests | {"training examples": "cc"}}
    with pytest.raises(CheckpointError, match="began with other training examples; use another --output") as error:
        open_run(identity=other).restore(abstract(make_state(0)))
    assert str(error.value).endswith(f"or delete {tmp_path / 'run'} to train again")
    more = {"seed": 2, "digests": {"weights of the model": "dd"}}
    with pytest.raises(CheckpointError, match="training examples and weights of the model, and seed is 1 there, 2"):
        open_run(identity=more).restore(abstract(make_state(0)))
    assert log == []


def test_a_checkpoint_of_an_earlier_version_without_digests_is_resumed(open_run, log: list[str]) -> None:
    run = open_run(identity={"seed": 1})
    run.save(1, make_state(1), {})
    run.close()
    digests = {"training examples": "aa", "weights of the model": "bb"}
    assert open_run(identity={"seed": 1, "digests": digests}).restore(abstract(make_state(0))).step == 1
    (line,) = log
    assert "has no digest of training examples and weights of the model: cannot check" in line
    with pytest.raises(CheckpointError, match=r"another configuration .* seed is 1 there, 2 here"):
        open_run(identity={"seed": 2, "digests": digests}).restore(abstract(make_state(0)))


def test_another_state_tree_is_refused_and_is_not_damage(open_run, two_steps: Path) -> None:
    state = make_state(0, size=301)
    del state["rng"]
    with pytest.raises(CheckpointError, match=r"params/dense/kernel is \[300, 40\] there, \[301, 40\] here"):
        open_run().restore(abstract(state))
    assert sorted(path.name for path in two_steps.iterdir()) == ["1", "2"]


def test_a_state_without_shardings_is_a_mistake_of_the_caller(open_run, two_steps: Path) -> None:
    with pytest.raises(TypeError, match="no sharding for moments"):
        open_run().restore(jax.eval_shape(lambda: make_state(1)))


@pytest.mark.usefixtures("two_steps")
def test_other_library_versions_are_only_logged(open_run, log: list[str], monkeypatch) -> None:
    monkeypatch.setattr(restore, "library_versions", lambda: {"jax": "99.0"})
    assert open_run().restore(abstract(make_state(0))).step == 2
    assert len(log) == 1
    assert re.search(r'jax is ".+" there, "99\.0" here', log[0])


def fail_reading(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_an_outage_while_reading_is_not_damage(open_run, log: list[str], two_steps: Path, monkeypatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(ocp.StandardCheckpointHandler, "restore", fail_reading(OSError(5, "Input/output error")))
        fake_time(monkeypatch, storage_faults, on_sleep=broken.undo)
        assert open_run(patience=60).restore(abstract(make_state(0))).step == 2
    assert len(log) == 1
    assert re.search(r"cannot read the checkpoint of step 2 in .*Input/output error; trying again", log[0])
    assert sorted(path.name for path in two_steps.iterdir()) == ["1", "2"]


def test_a_checkpoint_that_may_not_be_read_is_not_damage(open_run, two_steps: Path, monkeypatch) -> None:
    refused = fail_reading(PermissionError(13, "Permission denied"))
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", refused)
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint of step 2 .*denied; see that every host"):
        open_run(patience=60).restore(abstract(make_state(0)))
    assert sorted(path.name for path in two_steps.iterdir()) == ["1", "2"]
