from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForSequenceClassification, load_pretrained, save_pretrained
from deberta_jax.sharding import make_mesh

from ..support.small_models import SMALL


def test_round_trip_is_exact_also_onto_a_mesh(tmp_path: Path) -> None:
    config = SMALL.replace(num_labels=3, label_names=("a", "b", "c"))
    model = DebertaForSequenceClassification(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    save_pretrained(tmp_path / "model", config, params)
    found, loaded = load_pretrained(tmp_path / "model")
    assert found == config
    chex.assert_trees_all_equal(loaded, params)
    _, spread = load_pretrained(tmp_path / "model", mesh=make_mesh(fsdp=2, tensor=2))
    chex.assert_trees_all_equal(spread, params)
    kernel = spread["deberta"]["encoder"]["layer_0"]["feed_forward"]["intermediate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16, 32)


def test_saving_again_replaces_the_model(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_pretrained(tmp_path, SMALL, {"deberta": {"x": jnp.full(3, value)}})
    np.testing.assert_array_equal(load_pretrained(tmp_path)[1]["deberta"]["x"], [2, 2, 2])


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"holds: pytorch_model\.bin\. For PyTorch files"):
        load_pretrained(tmp_path)
