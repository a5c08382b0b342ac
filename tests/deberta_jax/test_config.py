"""DebertaConfig: validation, derived fields and released sizes (`test_config_json.py` has the published files)."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from deberta_jax import DebertaConfig, DebertaForMaskedLM, UserError
from deberta_jax.released import RELEASED

from ..support.paths import GOLDEN


def test_parameter_paths_equal_golden() -> None:
    config = DebertaConfig.named("deberta-v2-xlarge").replace(num_hidden_layers=2, type_vocab_size=2)
    model = DebertaForMaskedLM(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    paths = {"/".join(key.key for key in path): list(leaf.shape) for path, leaf in jax.tree.leaves_with_path(shapes)}
    assert paths == json.loads((GOLDEN / "parameter_paths.json").read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_json_round_trip_is_exact(name: str) -> None:
    config = DebertaConfig.named(name)
    assert DebertaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_masked_lm_form_follows_the_positions_unless_given() -> None:
    v3 = DebertaConfig.named("deberta-v3-base")
    assert v3.mlm_head == "emd"
    biased = v3.replace(position_biased_input=True)
    assert biased.mlm_head == "bert"
    assert biased.replace(position_biased_input=False) == v3
    assert biased.replace(hidden_size=96).mlm_head == "bert"
    for form in ("bert", "legacy"):
        config = v3.replace(mlm_head=form)
        assert not config.uses_enhanced_mask_decoder
        assert DebertaConfig.from_json(config.to_json()) == config
    before = {name: value for name, value in v3.to_json().items() if name != "mlm_head"}  # files from before the field
    assert DebertaConfig.from_json(before) == v3


def test_replace_derives_fields_again_unless_they_are_among_the_changes() -> None:
    config = DebertaConfig(vocab_size=100, hidden_size=96, num_attention_heads=4, attention_head_size=16)
    config = config.replace(embedding_size=48, mlm_head="legacy")
    assert config.replace(num_labels=3).attention_head_size == 16
    wider = config.replace(hidden_size=192)
    assert (wider.attention_head_size, wider.embedding_size, wider.mlm_head) == (48, 192, "legacy")
    assert config.replace(num_attention_heads=8).attention_head_size == 12
    assert config.replace(position_biased_input=False).mlm_head == "emd"
    kept = config.replace(hidden_size=192, attention_head_size=16, embedding_size=48)
    assert (kept.attention_head_size, kept.embedding_size) == (16, 48)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 770}, "hidden_size 770 is not divisible by num_attention_heads 12"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"relative_attention": True}, "pos_att_type is empty; give 'c2p|p2c'"),
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type has p2p; allowed are c2p, p2c"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; it must be one of gelu"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0; it must be positive and finite in 32 bits"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps is a whole number of 1329 bits; it must be positive and finite"),
        ({"initializer_range": 1e39}, "initializer_range is 1e+39; it must be positive and finite in 32 bits"),
        ({"conv_kernel_size": 4}, "conv_kernel_size is 4; it must be 0 (no convolution) or odd"),
        ({"conv_groups": 5}, "hidden_size 768 is not divisible by conv_groups 5"),
        ({"mlm_head": "enhanced"}, "mlm_head is 'enhanced'; it must be one of emd, bert, legacy"),
        ({"mlm_head": "emd", "position_biased_input": True}, "mlm_head 'emd' adds absolute positions at the end"),
        (
            {"relative_attention": True, "pos_att_type": "c2p", "position_buckets": 64, "max_relative_positions": 32},
            "max_relative_positions is 32; with position_buckets 64 it must be above 32",
        ),
        ({"model_type": "albert"}, "model_type is 'albert'; it must be one of deberta, bert, roberta, electra"),
        ({"model_type": "bert", "relative_attention": True, "pos_att_type": "c2p"}, "'bert' it must be False"),
        ({"model_type": "roberta", "embedding_size": 96}, "embedding_size is 96; with model_type 'roberta' it must"),
        ({"model_type": "electra", "hidden_act": "relu"}, "hidden_act is 'relu'; with model_type 'electra' it must"),
    ],
)
def test_bad_values_are_named(fields: dict[str, Any], message: str) -> None:
    family = {"bert": {"pooler_hidden_act": "tanh"}, "roberta": {"pooler_hidden_act": "tanh"}}
    with pytest.raises(UserError) as error:
        DebertaConfig(vocab_size=100, **{**family.get(fields.get("model_type", ""), {}), **fields})
    assert message in str(error.value)


def test_unknown_name_lists_the_released_models() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'deberta-v3-base'.*mdeberta-v3-base"):
        DebertaConfig.named("deberta-v3-bse")


def test_another_number_of_classes_has_no_names_of_the_old_ones() -> None:
    nli = DebertaConfig(vocab_size=100, num_labels=3, label_names=("entailment", "neutral", "contradiction"))
    assert nli.replace(num_labels=2) == DebertaConfig(vocab_size=100)
    assert nli.replace(num_labels=3) == nli
    assert nli.replace(num_labels=2, label_names=("no", "yes")).label_names == ("no", "yes")
    with pytest.raises(UserError, match="num_labels is 2, but there are 3 label names"):
        nli.replace(num_labels=2, label_names=nli.label_names)


def test_a_whole_number_is_read_as_the_float_it_stands_for() -> None:
    """JAX takes the int of a JSON file for an int32, in which 10**18 has no place."""
    config = DebertaConfig(vocab_size=100, initializer_range=10**18, layer_norm_eps=10**18)
    assert [type(value) for value in (config.initializer_range, config.layer_norm_eps)] == [float, float]
    assert (config.initializer_range, config.layer_norm_eps) == (1e18, 1e18)
