"""The table of parameter names and the conversion in both directions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import models
from deberta_jax.config import DebertaConfig
from deberta_jax.convert import ConversionError, mapping
from deberta_jax.convert.mapping import entries, to_params, to_state_dict

from ..support.paths import GOLDEN
from ..support.pytorch_files import (
    MLM,
    RTD,
    RTD_CASES,
    UNUSUAL,
    V1,
    V2_CONV,
    V3,
    assert_same,
    golden,
    golden_json,
    random_state,
)

CASES = sorted(folder.name for folder in GOLDEN.glob("*") if folder.name.startswith(("encoder", "mlm", "head", "sift")))


@pytest.mark.parametrize("config", [V1, V2_CONV, V3, UNUSUAL, V3.replace(relative_attention=False, pos_att_type=())])
def test_table_is_bijective(config: DebertaConfig) -> None:
    table = entries(config)
    assert len({entry.key for entry in table}) == len({entry.path for entry in table}) == len(table)
    state = random_state(config, *mapping.PARTS)
    assert_same(to_state_dict(to_params(state, config), config), state)


@pytest.mark.parametrize("case", CASES)
def test_golden_weights_round_trip_exactly(case: str) -> None:
    state, config = golden(case), DebertaConfig.from_json(golden_json(case))
    params = to_params(state, config)
    assert_same(to_state_dict(params, config), state)
    kernel = params["deberta"]["encoder"]["layer_0"]["feed_forward"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel, state["deberta.encoder.layer.0.output.dense.weight"].T)
    assert kernel.flags.c_contiguous
    assert kernel.dtype == np.float32


@pytest.mark.parametrize("side", ["generator", "discriminator"])
@pytest.mark.parametrize("case", RTD_CASES)
def test_golden_pairs_round_trip_exactly(case: str, side: str) -> None:
    state, config = golden(case, f"weights/{side}."), DebertaConfig.from_json(golden_json(case)[side])
    shared = case == "rtd_es" and side == "discriminator"
    params = to_params(state, config, shared_embeddings=shared)
    assert_same(to_state_dict(params, config, shared_embeddings=shared), state)
    has_differences = side == "discriminator" and case in ("rtd_step", "rtd_gdes_joint")
    if not shared:
        leaves = list(params["deberta"]["embeddings"]["word_embeddings"])
        assert leaves == ["delta" if has_differences else "embedding"]
    else:
        with pytest.raises(ConversionError, match=r"missing: deberta.embeddings.word_embeddings.weight; unex"):
            to_params(state, config)


@pytest.mark.parametrize("config", [V3, UNUSUAL], ids=["v3", "unusual"])
@pytest.mark.parametrize(
    ("model", "heads", "classes"),
    [
        (models.DebertaForMaskedLM, [MLM], 1),
        (models.DebertaForReplacedTokenDetection, [RTD], 1),
        (models.DebertaForSequenceClassification, ["pooler", "classifier"], 2),
        (models.DebertaForMultipleChoice, ["pooler", "classifier"], 1),
        (models.DebertaForTokenClassification, ["classifier"], 2),
        (models.DebertaForQuestionAnswering, ["span_classifier"], 2),
    ],
)
def test_converted_trees_match_initialized_models(
    config: DebertaConfig, model: type, heads: list[str], classes: int
) -> None:
    choices = (1, 2, 4) if model is models.DebertaForMultipleChoice else (1, 4)
    expected = jax.eval_shape(model(config).init, jax.random.key(0), jnp.ones(choices, jnp.int32))["params"]
    params = to_params(random_state(config, *heads, classes=classes), config)
    if "position_embeddings" not in expected["deberta"]["embeddings"]:
        del params["deberta"]["embeddings"]["position_embeddings"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)


def test_error_lists_missing_and_unexpected_names() -> None:
    state = random_state(V3)
    for i in range(2):
        state[f"deberta.encoder.layer.{i}.attention.self.surprise"] = state.pop(
            f"deberta.encoder.layer.{i}.attention.self.key_proj.bias"
        )
    with pytest.raises(ConversionError) as error_info:
        to_params(state, V3)
    assert "missing: deberta.encoder.layer.*.attention.self.key_proj.bias (2 times)" in str(error_info.value)
    assert "unexpected: deberta.encoder.layer.*.attention.self.surprise (2 times)" in str(error_info.value)
    params = to_params(random_state(V3), V3)
    params["deberta"]["encoder"]["layer_1"]["extra"] = params["deberta"]["embeddings"].pop("layer_norm")
    with pytest.raises(ConversionError, match=r"missing: deberta/embeddings/layer_norm/scale.*unexpected: deberta/enc"):
        to_state_dict(params, V3)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            V3,
            {"deberta.embeddings.LayerNorm.bias": np.zeros(3, np.float32)},
            r"shape \(3,\).* requires \(16,\)",
        ),
        (V3, {"deberta.embeddings.LayerNorm.bias": np.zeros(16, np.int64)}, "is int64; it must be"),
        (V3, {"deberta.embeddings.LayerNorm.bias": "text"}, "is str; it must be"),
        (V3.replace(num_hidden_layers=10**9), {}, "have 2 layers, but the configuration says num_hidden_layers 10000"),
        (V3.replace(vocab_size=10**15), {}, r"word_embeddings.weight has shape \(50, 16\)"),
        (V3.replace(norm_rel_ebd="none"), {}, "unexpected: deberta.encoder.LayerNorm.bias"),
        (V3.replace(type_vocab_size=2), {}, "missing: deberta.embeddings.token_type_embeddings.weight; unexp"),
        (V3, {"classifier.weight": np.zeros((3, 16), np.float32)}, r"missing: classifier\.bias; unexpected: nothing"),
        (
            V3,
            {"classifier.weight": np.zeros((3, 16), np.float32), "classifier.bias": np.zeros(4, np.float32)},
            r"is for 3 classes, but classifier\.bias for 4",
        ),
    ],
)
def test_weights_that_contradict_the_configuration_are_refused(
    config: DebertaConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConversionError, match=message) as error_info:
        to_params(random_state(V3) | change, config)
    assert "\n" not in str(error_info.value)


def test_position_table_is_required_only_with_position_biased_input() -> None:
    state = random_state(V3)
    del state["deberta.embeddings.position_embeddings.weight"]
    assert "position_embeddings" not in to_params(state, V3)["deberta"]["embeddings"]
    with pytest.raises(ConversionError, match=r"missing: deberta.embeddings.position_embeddings.weight"):
        to_params(state, V3.replace(position_biased_input=True))


def test_float64_is_rounded_and_overflow_is_refused() -> None:
    state = {key: array.astype(np.float64) + 1e-12 for key, array in random_state(V3).items()}
    assert_same(to_params(state, V3), to_params({key: array.astype(np.float32) for key, array in state.items()}, V3))
    state["deberta.embeddings.LayerNorm.bias"][2] = 1e300
    with pytest.raises(ConversionError, match=r"embeddings.LayerNorm.bias has values that float32 cannot hold"):
        to_params(state, V3)
