"""Saving and loading a model's folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import (
    DebertaForMultipleChoice,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    UserError,
    load_pretrained,
    make_mesh,
    save_pretrained,
)

from ..support.small_models import SMALL, random_params

IDS = np.ones((1, 4), np.int32)


def test_round_trip_is_exact_also_onto_a_mesh(tmp_path: Path) -> None:
    config = SMALL.replace(num_labels=3, label_names=("a", "b", "c"))
    params = random_params(DebertaForSequenceClassification(config), IDS)
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
        save_pretrained(tmp_path, SMALL, {"deberta": {}, "mine": {"x": jnp.full(3, value)}})
    np.testing.assert_array_equal(load_pretrained(tmp_path)[1]["mine"]["x"], [2, 2, 2])  # a head of the caller's


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds: no such folder"):
        load_pretrained(tmp_path / "missing")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"holds: pytorch_model\.bin\. For PyTorch files"):
        load_pretrained(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_pretrained(folder, SMALL, {"deberta": {"embeddings": {"word_embeddings": {"embedding": jnp.ones((60, 32))}}}})
    return folder


def test_parameters_that_the_configuration_does_not_read_are_refused(tmp_path: Path) -> None:
    ner = SMALL.replace(token_projection=True)
    params = random_params(DebertaForTokenClassification(ner), IDS)
    save_pretrained(tmp_path, SMALL.replace(num_hidden_layers=2), params)
    with pytest.raises(UserError, match="have deberta/encoder/layer_2, which Encoder does not read") as error:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)
    save_pretrained(tmp_path, SMALL.replace(intermediate_size=48), params)
    with pytest.raises(UserError, match=r"parameters of another size than its config.json says: .*\(32, 64\)"):
        load_pretrained(tmp_path)
    pooled = random_params(DebertaForSequenceClassification(SMALL), IDS)
    save_pretrained(tmp_path, SMALL, {**pooled, "pooler": {**pooled["pooler"], "gate": pooled["pooler"]["dense"]}})
    with pytest.raises(UserError, match="have pooler/gate, which ContextPooler does not read"):
        load_pretrained(tmp_path)


def test_a_projection_of_earlier_versions_is_read_from_the_parameters(tmp_path: Path) -> None:
    ner = SMALL.replace(token_projection=True)
    save_pretrained(tmp_path, SMALL, random_params(DebertaForTokenClassification(ner), IDS))
    assert load_pretrained(tmp_path)[0] == ner


def test_a_folder_with_any_number_of_classes_is_read(tmp_path: Path) -> None:
    named = SMALL.replace(num_labels=3, label_names=("a", "b", "c"))
    params = random_params(DebertaForMultipleChoice(named), IDS[None])
    save_pretrained(tmp_path, named, params)
    config, loaded = load_pretrained(tmp_path)
    assert config == named
    chex.assert_trees_all_equal(loaded, params)


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
