"""Layouts and names of published files that differ from the table."""

import numpy as np
import pytest

from deberta_jax.config import DebertaConfig
from deberta_jax.convert import ConversionError
from deberta_jax.convert.mapping import to_params
from deberta_jax.convert.quirks import LEGACY_MLM_HEAD, adapt_heads
from deberta_jax.convert.to_pytorch import rename_keys

from ..support.pytorch_files import MLM, RTD, V3, State, assert_same, golden, golden_json, random_state


def legacy_names(state: State) -> State:
    """Renames the masked LM head to transformers' legacy names."""
    return rename_keys(state, {current: legacy for legacy, current in LEGACY_MLM_HEAD.items()})


def test_version_1_layout_equals_version_2_names() -> None:
    config = DebertaConfig.from_json(golden_json("encoder_v1"))
    hub = to_params(golden("encoder_v1", "weights_v1hub/"), config)
    assert_same(hub, to_params(golden("encoder_v1"), config))


def test_old_names_prefixes_and_buffers_are_accepted() -> None:
    state = random_state(V3, MLM, RTD)
    expected = to_params(state, V3)
    names = {"deberta.": "bert.", "mask_predictions.classifier": "mask_predictions.classifer"}
    old = rename_keys(state, names)
    old |= {"config": {"hidden_size": 16}, "bert.embeddings.position_ids": np.arange(32)[None]}
    assert_same(to_params(old, V3), expected)
    encoder = random_state(V3)
    without_prefix = {key.removeprefix("deberta."): encoder[key] for key in encoder}
    assert_same(to_params(without_prefix, V3), to_params(encoder, V3))
    with pytest.raises(ConversionError, match="twice, under an old name and a new one"):
        to_params(encoder | without_prefix, V3)


def test_legacy_masked_lm_head_with_or_without_tied_decoder() -> None:
    state = random_state(V3, MLM)
    expected = to_params(state, V3)
    legacy = legacy_names(state)
    assert_same(to_params(legacy, V3), expected)
    words, bias = legacy["deberta.embeddings.word_embeddings.weight"], legacy["cls.predictions.bias"]
    tied = legacy | {"cls.predictions.decoder.weight": words, "cls.predictions.decoder.bias": bias}
    assert_same(to_params(tied, V3), expected)
    del tied["cls.predictions.bias"]
    assert_same(to_params(tied, V3), expected)
    with pytest.raises(ConversionError, match="only a tied decoder"):
        to_params(tied | {"cls.predictions.decoder.weight": words + 1}, V3)


def test_gdes_differences_with_and_without_the_sum() -> None:
    state = random_state(V3, RTD)
    words, positions = "deberta.embeddings.word_embeddings.", "deberta.embeddings.position_embeddings."
    with_sum = state | {
        f"{words}_weight": state[f"{words}weight"] + 1,
        f"{positions}_weight": state[f"{positions}weight"],
    }
    assert_same(to_params(with_sum, V3), to_params(state, V3))
    without_sum = {f"{words}_weight" if key == f"{words}weight" else key: state[key] for key in state}
    tables = to_params(without_sum, V3)["deberta"]["embeddings"]
    assert list(tables["word_embeddings"]) == ["delta"]
    assert list(tables["position_embeddings"]) == ["embedding"]


def test_form_of_masked_lm_head_follows_from_the_names() -> None:
    names = random_state(V3, MLM).keys()
    legacy = legacy_names(random_state(V3, MLM)).keys()
    without_positions = names - {"deberta.embeddings.position_embeddings.weight"}
    cases = [
        ("emd", names, "emd"),
        ("emd", legacy, "legacy"),
        ("emd", without_positions, "bert"),
        ("bert", names, "bert"),
        ("legacy", names, "bert"),
        ("legacy", random_state(V3).keys(), "legacy"),
    ]
    for configured, keys, expected in cases:
        assert adapt_heads(V3.replace(mlm_head=configured), keys) == V3.replace(mlm_head=expected)
