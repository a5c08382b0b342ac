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
        ({"label_names": ["a", "b"]}, "unknown field 'label_names'"),
        ({"padding_idx": 1}, "padding_idx is 1; it must be 0, as in every DeBERTa model"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "768"}, "hidden_size is '768'; it must be of type int"),
        ({"share_att_key": 1}, "share_att_key is 1; it must be of type bool"),
        ({"cls_dropout": True}, "cls_dropout is True; it must be of type float | None"),
        ({"id2label": ["no", "yes"]}, "id2label is ['no', 'yes']; it must be an object"),
        ({"id2label": {"no": 0, "yes": 1}}, "id2label has the keys 'no', 'yes'; they must be numbers"),
        ({"pooling": 0.1}, "pooling is 0.1; it must be an object"),
        ({"pos_att_type": 3}, "pos_att_type is 3; it must be a string such as 'c2p|p2c'"),
        ({"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, "num_labels is 3, but there are 2 label names"),
        ({"discriminator": {}}, "RTDConfig.from_json"),
        ({"model_type": "xlnet"}, "model_type is 'xlnet'; it must be one of deberta, deberta-v2, bert, roberta, ele"),
        ({"model_type": "roberta", "pad_token_id": 0}, "pad_token_id is 0; it must be 1, as in every RoBERTa model"),
        ({"model_type": "electra", "pad_token_id": 1}, "pad_token_id is 1; it must be 0, as in every ELECTRA model"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "for BERT only 'absolute' is supported"),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder is True; for BERT only False is supported"),
        ({"model_type": "bert", "use_cach": True}, "unknown field 'use_cach'"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        DebertaConfig.from_json({"vocab_size": 100, **fields})
    assert message in str(error.value)


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
