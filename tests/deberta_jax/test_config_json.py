"""Published config.json files of DeBERTa, BERT, RoBERTa and ELECTRA."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from deberta_jax import Deberta, DebertaConfig, UserError

from ..support.baselines import PUBLISHED

V3_BASE = {  # Microsoft's file of deberta-v3-base
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


def test_published_json_of_microsoft() -> None:
    assert DebertaConfig.from_json(V3_BASE) == DebertaConfig.named("deberta-v3-base")
    pooling = {"pooling": {"dropout": 0.2, "hidden_act": "gelu_tanh"}, "hidden_act": "gelu_pytorch_tanh"}
    config = DebertaConfig.from_json({**V3_BASE, **pooling})
    assert (config.pooler_dropout, config.pooler_hidden_act, config.hidden_act) == (0.2, "gelu_tanh", "gelu_tanh")
    baseline = DebertaConfig.from_json({"vocab_size": 100, "position_buckets": 256})  # without relative attention
    assert baseline == DebertaConfig(vocab_size=100)


def test_published_json_of_transformers(tmp_path: Path) -> None:
    fields = {
        **V3_BASE,
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
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = DebertaConfig.from_json(tmp_path)
    assert config.label_names == ("contradiction", "neutral", "entailment")
    assert config.replace(label_names=(), num_labels=2) == DebertaConfig.named("deberta-v3-base")
    assert DebertaConfig.from_json(config.to_json()) == config
    placeholders = {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}
    unnamed = DebertaConfig.from_json({**V3_BASE, **placeholders})
    assert (unnamed.num_labels, unnamed.label_names) == (3, ())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_baselines_have_the_published_number_of_parameters(name: str) -> None:
    fields, parameters = PUBLISHED[name]
    config = DebertaConfig.from_json(fields)
    assert DebertaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    shapes = jax.eval_shape(Deberta(config).init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_baselines_have_the_defaults_of_their_family() -> None:
    bert, roberta, electra = (
        DebertaConfig.from_json({"model_type": family, "vocab_size": 100}) for family in ("bert", "roberta", "electra")
    )
    assert (bert.layer_norm_eps, bert.type_vocab_size) == (1e-12, 2)
    assert (bert.pooler_hidden_act, bert.mlm_head) == ("tanh", "bert")
    assert (bert.pad_token_id, bert.position_offset, bert.pooler_dropout) == (0, 0, 0.0)
    assert (roberta.pad_token_id, roberta.position_offset, roberta.pooler_dropout) == (1, 2, 0.1)
    assert (electra.embedding_size, electra.hidden_size, electra.pooler_hidden_act) == (128, 256, "gelu")
    dropout = DebertaConfig.from_json({"model_type": "roberta", "vocab_size": 100, "classifier_dropout": 0.3})
    assert (dropout.classifier_dropout, dropout.pooler_dropout) == (0.3, 0.3)
    assert dropout.to_json()["classifier_dropout"] == 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hiden_size": 3}, "unknown field 'hiden_size'. Did you mean 'hidden_size'"),
        ({"label_names": ["a", "b"]}, "unknown field 'label_names'. Did you mean 'id2label'"),
        ({"id2labels": {"0": "no"}}, "unknown field 'id2labels'. Did you mean 'id2label'"),
        ({"layer_norm_epsilon": 1e-5}, "unknown field 'layer_norm_epsilon'. Did you mean 'layer_norm_eps'"),
        ({"num_hidden_layer": 3}, "unknown field 'num_hidden_layer'. Did you mean 'num_hidden_layers'"),
        ({"hidden_dim": 768}, "unknown field 'hidden_dim'. Did you mean 'hidden_size'"),
        ({"hiddenSize": 768}, "unknown field 'hiddenSize'. Did you mean 'hidden_size'"),
        ({"n_layers": 3}, "unknown field 'n_layers'. Did you mean 'num_hidden_layers'"),
        ({"hidden_size": 768, "hidden_dim": 512}, "unknown field 'hidden_dim'"),  # which of the two is right?
        ({"problem_types": "regression"}, "unknown field 'problem_types'. Did you mean 'problem_type'"),
        ({"problem_type": "multi_label"}, "problem_type is 'multi_label'; it must be one of None, single_label"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; it must be one of gelu, gelu_tanh, relu, tanh"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is set (gptq): the weights are quant"),
        ({"load_in_8bit": True}, "load_in_8bit is set: the weights are quantized"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; only 'absolute'"),
        ({"rope_theta": 10000.0}, "rope_theta is 10000.0; only None is supported"),
        ({"id2label": {"-1": "no", "0": "yes"}}, "id2label has the classes -1 to 0; they must count from 0"),
        ({"id2label": {"0": "no", "9999999999": "yes"}}, "classes 0 to 9999999999; they must count from 0"),
        ({"num_labels": "3", "id2label": {"0": "no"}}, "num_labels is '3'; it must be of type int"),
        ({"padding_idx": 1}, "padding_idx is 1; it must be 0, as in every DeBERTa model"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "768"}, "hidden_size is '768'; it must be of type int"),
        ({"share_att_key": 1}, "share_att_key is 1; it must be of type bool"),
        ({"cls_dropout": True}, "cls_dropout is True; it must be of type float | None"),
        ({"id2label": ["no", "yes"]}, "id2label is ['no', 'yes']; it must be an object"),
        ({"id2label": {"no": 0, "yes": 1}}, "id2label has the keys 'no', 'yes'; they must be numbers"),
        ({"pooling": 0.1}, "pooling is 0.1; it must be an object"),
        ({"pos_att_type": 3}, "pos_att_type is 3; it must be a string such as 'c2p|p2c'"),
        ({"discriminator": {}}, "RTDConfig.from_json"),
        ({"model_type": "albert"}, "model_type is 'albert'; it must be one of deberta, deberta-v2, bert, roberta, ele"),
        ({"model_type": "roberta", "pad_token_id": 0}, "pad_token_id is 0; it must be 1, as in every RoBERTa model"),
        ({"model_type": "electra", "pad_token_id": 1}, "pad_token_id is 1; it must be 0, as in every ELECTRA model"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "only 'absolute' is supported"),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder is True; for BERT only False is supported"),
        ({"model_type": "bert", "num_head": 2}, "unknown field 'num_head'. Did you mean 'num_attention_heads'"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        DebertaConfig.from_json({"vocab_size": 100, **fields})
    assert message in str(error.value)


HARMLESS = {  # written by other libraries
    "sentence_transformers": {"version": "5.1.0", "activation_fn": "torch.nn.modules.activation.Sigmoid"},
    "classifier_dropout": 0.1,
    "transformers.js_config": {"dtype": "q8"},
    "auto_map": {},
    "custom_pipelines": {},
    "label_list": ["O", "B-PER"],
    "max_seq_length": 256,
    "base_model_type": "deberta",
    "adapters": {},
    "unsloth_version": "2025.1",
    "embedding_dim": 768,
    "num_classes": 3,
    "attention_bias": True,
    "pad_token": "[PAD]",
    "model_name": "mine",
    "dropout": 0.1,
}
SILENT = {
    "_attn_implementation_autoset": True,
    "_attn_implementation": "eager",
    "use_cache": True,
    "quantization_config": None,
    "rope_scaling": None,
    "position_embedding_type": "absolute",
    "num_beams": 1,
    "layer_norm_eps": 1e-7,
    "layer_norm_epsilon": 1e-7,  # the same number under both names
}


@pytest.mark.parametrize("family", ["deberta-v2", "bert", "roberta", "electra"])
def test_unknown_fields_are_listed_in_one_line_and_not_kept(family: str, caplog: pytest.LogCaptureFixture) -> None:
    fields = {"model_type": family, "vocab_size": 100}
    plain = DebertaConfig.from_json({**fields, "layer_norm_eps": 1e-7})
    assert DebertaConfig.from_json({**fields, **SILENT}) == plain
    assert not caplog.records
    config = DebertaConfig.from_json({**fields, **SILENT, **HARMLESS})
    listed = sorted(HARMLESS.keys() - ({"classifier_dropout"} if family != "deberta-v2" else set()))
    assert [record.getMessage() for record in caplog.records] == [
        f"the configuration: fields that are not used: {', '.join(listed)}"
    ]
    assert config.replace(cls_dropout=None) == plain
    assert not HARMLESS.keys() & config.to_json().keys() - {"classifier_dropout"}


def test_null_stands_for_the_default() -> None:
    nulls = dict.fromkeys(("conv_kernel_size", "cls_dropout", "conv_act", "problem_type", "pooler_hidden_act"))
    assert DebertaConfig.from_json({**V3_BASE, **nulls}) == DebertaConfig.named("deberta-v3-base")


def test_misspelled_arguments_stay_errors() -> None:
    with pytest.raises(TypeError, match="hiden_size"):
        DebertaConfig(vocab_size=100, hiden_size=3)  # type: ignore[call-arg]


def test_problem_type_is_kept() -> None:
    for problem in ("multi_label_classification", "regression", "single_label_classification"):
        config = DebertaConfig.from_json({**V3_BASE, "problem_type": problem})
        assert (config.problem_type, DebertaConfig.from_json(config.to_json())) == (problem, config)
    # Checkpoints of earlier versions have neither field, and have to equal the configuration of the same run today.
    plain = DebertaConfig.from_json({**V3_BASE, "problem_type": None}).to_json()
    assert not {"problem_type", "token_projection"} & plain.keys()
    projection = DebertaConfig.named("deberta-v3-base").replace(token_projection=True)
    assert DebertaConfig.from_json(projection.to_json()) == projection


def test_activations_have_several_names() -> None:
    for name, ours in (("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_new", "gelu_tanh"), ("gelu_python", "gelu")):
        fields = {**V3_BASE, **dict.fromkeys(("hidden_act", "conv_act", "pooler_hidden_act"), name)}
        config = DebertaConfig.from_json(fields)
        assert (config.hidden_act, config.conv_act, config.pooler_hidden_act) == (ours, ours, ours)


@pytest.mark.parametrize(
    ("fields", "count", "names"),
    [
        ({"id2label": {"1": "b", "0": "a"}}, 2, ("a", "b")),
        ({"id2label": {"1": "LABEL_0", "0": "LABEL_1"}}, 2, ("LABEL_1", "LABEL_0")),  # permuted: these are names
        ({"id2label": {"0": "a", "2": "c"}}, 3, ("a", "LABEL_1", "c")),
        ({"id2label": {"0": "a", "1": "a"}}, 2, ("a", "a")),
        ({"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, 3, ("no", "yes", "LABEL_2")),
        ({"num_labels": 2, "id2label": {"0": "no", "1": "yes", "2": "both"}}, 3, ("no", "yes", "both")),
        ({"num_labels": 1, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, 1, ()),
        ({"label2id": {"SAFE": 0, "INJECTION": 1}}, 2, ("SAFE", "INJECTION")),
        (
            {"id2label": {"0": "SAFE", "1": "INJECTION"}, "label2id": {"safe": 0, "injection": 1}},
            2,
            ("SAFE", "INJECTION"),
        ),
        ({"id2label": None, "label2id": None, "num_labels": None}, 2, ()),
        ({"id2label": {"0": 0, "1": 1}}, 2, ("0", "1")),
    ],
)
def test_names_of_labels(fields: dict[str, Any], count: int, names: tuple[str, ...]) -> None:
    config = DebertaConfig.from_json({**V3_BASE, **fields})
    assert (config.num_labels, config.label_names) == (count, names)
    assert DebertaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json is not JSON: Expecting property name"),
        (b"\xff{}", r"config\.json is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, r"config\.json is not JSON"),
        (b"[]", r"config\.json holds a list; expected a JSON object"),
        (b"{}", r"config\.json: vocab_size is missing"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        DebertaConfig.from_json(tmp_path)


def test_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        DebertaConfig.from_json(tmp_path)
