"""Saving and loading a model's folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForSequenceClassification, UserError, load_pretrained, make_mesh, save_pretrained

from ..support.small_models import SMALL, random_params


def test_round_trip_is_exact_also_onto_a_mesh(tmp_path: Path) -> None:
    config = SMALL.replace(num_labels=3, label_names=("a", "b", "c"))
    params = random_params(DebertaForSequenceClassification(config), np.ones((1, 4), np.int32))
    save_pretrained(tmp_path / "model", config, params)
    loaded_config, loaded = load_pretrained(tmp_path / "model")
    assert loaded_config == config
    chex.assert_trees_all_equal(loaded, params)
    _, sharded = load_pretrained(tmp_path / "model", mesh=make_mesh(fsdp=2, tensor=2))
    chex.assert_trees_all_equal(sharded, params)
    kernel = sharded["deberta"]["encoder"]["layer_0"]["feed_forward"]["intermediate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 32)


def test_saving_again_replaces_the_model(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_pretrained(tmp_path, SMALL, {"deberta": {"x": jnp.full(3, value)}})
    np.testing.assert_array_equal(load_pretrained(tmp_path)[1]["deberta"]["x"], [2, 2, 2])


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds: no such folder"):
        load_pretrained(tmp_path / "missing")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"holds: pytorch_model\.bin\. For PyTorch files"):
        load_pretrained(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_pretrained(folder, SMALL, {"deberta": {"x": jnp.arange(3000.0)}})
    return folder


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # coroutines that Orbax abandons
@pytest.mark.parametrize(
    "damage",
    [
        empty,
        lambda folder: (folder / "_METADATA").unlink(),
        lambda folder: (folder / "_METADATA").write_text("{"),
        lambda folder: (folder / "manifest.ocdbt").write_bytes(b"\xff garbage"),
        lambda folder: largest_file(folder).unlink(),
        lambda folder: largest_file(folder).write_bytes(largest_file(folder).read_bytes()[:100]),
    ],
    ids=["empty", "no metadata", "broken metadata", "broken manifest", "no data", "truncated data"],
)
def test_damaged_parameters_are_a_users_error_in_one_line(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage(folder / "params")
    with pytest.raises(UserError, match=r"params are damaged or incomplete: .*; copy the folder or save") as error:
        load_pretrained(folder)
    assert len(str(error.value).splitlines()) == 1


def test_broken_configuration_is_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "config.json").write_text(json.dumps({**SMALL.to_json(), "hidden_size": "32"}))
    with pytest.raises(UserError, match=r"config\.json: hidden_size is '32'; it must be of type int"):
        load_pretrained(folder)
