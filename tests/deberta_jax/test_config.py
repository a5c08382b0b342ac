import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from deberta_jax import Deberta, DebertaConfig, DebertaForMaskedLM
from deberta_jax.config import RELEASED

from ..support.paths import GOLDEN

# Parameters of the backbone, embeddings included (transformers on the meta device; KerasHub's presets for v3).
PARAMETERS = {
    "deberta-base": 138_601_728,
    "deberta-large": 405_163_008,
    "deberta-xlarge": 757_804_032,
    "deberta-v2-xlarge": 884_593_152,
    "deberta-v2-xxlarge": 1_564_549_632,
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-small": 141_304_320,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "mdeberta-v3-base": 278_218_752,
}


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_size_has_its_published_number_of_parameters(name: str) -> None:
    config = DebertaConfig.named(name)
    shapes = jax.eval_shape(Deberta(config).init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    if not config.share_att_key:  # v1: no bias of key and position key projections in the published files
        count -= 2 * config.hidden_size * config.num_hidden_layers
    assert count == PARAMETERS[name]


def test_parameter_paths_are_a_contract() -> None:
    config = DebertaConfig.named("deberta-v2-xlarge").replace(num_hidden_layers=2, type_vocab_size=2)
    model = DebertaForMaskedLM(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    paths = {"/".join(key.key for key in path): list(leaf.shape) for path, leaf in jax.tree.leaves_with_path(shapes)}
    golden = GOLDEN / "parameter_paths.json"
    assert paths == json.loads(golden.read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_json_round_trip(name: str) -> None:
    config = DebertaConfig.named(name)
    assert DebertaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_published_json_of_microsoft_and_transformers(tmp_path: Path) -> None:
    microsoft = {
        "model_type": "deberta-v2",
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "layer_norm_eps": 1e-7,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "type_vocab_size": 0,
        "vocab_size": 128100,
    }
    assert DebertaConfig.from_json(microsoft) == DebertaConfig.named("deberta-v3-base")
    transformers = {
        **microsoft,
        "architectures": ["DebertaV2ForSequenceClassification"],
        "dtype": "float32",
        "legacy": True,
        "pad_token_id": 0,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 768,
        "pos_att_type": ["p2c", "c2p"],
        "transformers_version": "5.23.0",
        "id2label": {"1": "neutral", "0": "contradiction", "2": "entailment"},
        "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(transformers))
    config = DebertaConfig.from_json(tmp_path)
    assert config.label_names == ("contradiction", "neutral", "entailment")
    assert config.replace(label_names=(), num_labels=2) == DebertaConfig.named("deberta-v3-base")
    assert DebertaConfig.from_json(config.to_json()) == config


def test_the_form_of_masked_lm_follows_the_positions_unless_it_is_given() -> None:
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hiden_size": 3}, "unknown field 'hiden_size'. Did you mean 'hidden_size'"),
        ({"hidden_size": 770}, "hidden_size 770 does not divide into num_attention_heads 12"),
        ({"relative_attention": True}, "pos_att_type is empty; give 'c2p|p2c'"),
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type has p2p; allowed are c2p, p2c"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; it must be one of gelu"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"conv_kernel_size": 4}, "conv_kernel_size is 4; it must be 0 (no convolution) or odd"),
        ({"padding_idx": 1}, "the padding id must be 0"),
        ({"vocab_size": None}, "vocab_size"),
        ({"mlm_head": "enhanced"}, "mlm_head is 'enhanced'; it must be one of emd, bert, legacy"),
        ({"mlm_head": "emd", "position_biased_input": True}, "mlm_head 'emd' adds absolute positions at the end"),
        ({"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, "num_labels is 3, but there are 2 label names"),
        ({"discriminator": {}}, "RTDConfig.from_json"),
    ],
)
def test_bad_fields_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        DebertaConfig.from_json({"vocab_size": 100, **fields})
    assert message in str(error.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DebertaConfig.from_json(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        DebertaConfig.from_json(tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'deberta-v3-base'"):
        DebertaConfig.named("deberta-v3-bse")
