"""How Orbax commits a step: by renaming its folder, said explicitly, because Orbax's own choice may change."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from etils import epath
from orbax.checkpoint._src.path import atomicity, atomicity_defaults

from deberta_jax import save_pretrained
from deberta_jax.train.checkpoints import orbax_manager

from ...support.checkpoint_states import make_state
from ...support.small_models import SMALL

Paths = list[atomicity.TemporaryPathBase]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Receives the temporary folders that Orbax creates, where its own choice would be a commit file everywhere."""
    on_a_bucket = SimpleNamespace(is_gcs_path=lambda path: True)
    monkeypatch.setattr(atomicity_defaults, "gcs_utils", on_a_bucket)
    assert atomicity_defaults.get_default_temporary_path_class(epath.Path("/run")) is atomicity.CommitFileTemporaryPath
    created: Paths = []
    for path_class in (atomicity.CommitFileTemporaryPath, atomicity.AtomicRenameTemporaryPath):
        create = path_class.create

        async def record(self: atomicity.TemporaryPathBase, create=create) -> epath.Path:
            created.append(self)
            return await create(self)

        monkeypatch.setattr(path_class, "create", record)
    return created


def test_a_step_is_renamed_whatever_orbax_would_choose(open_run, used: Paths, tmp_path: Path) -> None:
    with open_run() as checkpointer:
        checkpointer.save(1, make_state(1), {})
    assert {type(path) for path in used} == {atomicity.AtomicRenameTemporaryPath}
    assert used[0].get().name == "1.orbax-checkpoint-tmp"
    with open_run() as checkpointer:
        assert checkpointer.latest_step() == 1
    assert (tmp_path / "run" / "1" / "state").is_dir()


def test_a_model_is_renamed_whatever_orbax_would_choose(used: Paths, tmp_path: Path) -> None:
    save_pretrained(tmp_path, SMALL, {"deberta": {"x": jnp.ones(3)}})
    assert [type(path) for path in used] == [atomicity.AtomicRenameTemporaryPath]
    assert used[0].get().name == "params.orbax-checkpoint-tmp"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/mnt/bucket/run", atomicity.AtomicRenameTemporaryPath),  # a bucket mounted by gcsfuse
        ("run/checkpoints", atomicity.AtomicRenameTemporaryPath),
        (Path("run"), atomicity.AtomicRenameTemporaryPath),
        ("gs://bucket/run", atomicity.CommitFileTemporaryPath),
    ],
)
def test_steps_that_orbax_committed_by_itself_are_still_read(folder: Path | str, expected: type) -> None:
    """What is set explicitly is what Orbax chose so far, so that a step in an old folder counts as committed."""
    options = ocp.options.AtomicityOptions(mode=orbax_manager.commit_mode(folder))
    path = epath.Path(folder) / "1"
    assert atomicity_defaults.get_default_temporary_path_class(path, atomicity_options=options) is expected
    assert atomicity_defaults.get_default_temporary_path_class(path) is expected
