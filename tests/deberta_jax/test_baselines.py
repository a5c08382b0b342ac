"""BERT, RoBERTa and ELECTRA: the same encoder without relative attention, converted by the same table.

Weights have a standard deviation of 0.2, for the reason in `test_parity`.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, DebertaConfig, load_pretrained, models, save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.convert import ConversionError, load_pytorch, save_pytorch, verify
from deberta_jax.convert.mapping import to_params, to_state_dict

from ..support.golden_cases import assert_close
from ..support.pytorch_files import assert_same, random_state

# The published files of configuration, without the names of versions and the like.
COMMON = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
BERT = {
    **COMMON,
    "architectures": ["BertForMaskedLM"],
    "gradient_checkpointing": False,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
ROBERTA = {
    **COMMON,
    "architectures": ["RobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
ELECTRA = {
    **COMMON,
    "architectures": ["ElectraForPreTraining"],
    "embedding_size": 768,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "electra",
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
    "summary_type": "first",
    "summary_use_proj": True,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
ELECTRA_SMALL = {"hidden_size": 256, "embedding_size": 128, "num_attention_heads": 4, "intermediate_size": 1024}
# Parameters of the backbone without the pooler: transformers' on the meta device.
PUBLISHED = {
    "bert-base-uncased": (BERT, 108_891_648),
    "roberta-base": (ROBERTA, 124_055_040),
    "electra-base-discriminator": (ELECTRA, 108_891_648),
    "electra-small-discriminator": ({**ELECTRA, **ELECTRA_SMALL}, 13_483_008),
}
TINY = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 42,
}
SMALL = {
    "bert": {**BERT, **TINY},
    "roberta": {**ROBERTA, **TINY},
    "electra": {**ELECTRA, **TINY, "embedding_size": 16},
}
PREFIX = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra"}
HEADS = {  # transformers' class and ours
    "encoder": ("Model", models.Deberta, {}),
    "masked LM": ("ForMaskedLM", models.DebertaForMaskedLM, {}),
    "classification": ("ForSequenceClassification", models.DebertaForSequenceClassification, {"num_labels": 3}),
    "regression": ("ForSequenceClassification", models.DebertaForSequenceClassification, {"num_labels": 1}),
    "tokens": ("ForTokenClassification", models.DebertaForTokenClassification, {"num_labels": 5}),
    "spans": ("ForQuestionAnswering", models.DebertaForQuestionAnswering, {}),
    "choices": ("ForMultipleChoice", models.DebertaForMultipleChoice, {}),
    "replaced tokens": ("ForPreTraining", models.DebertaForReplacedTokenDetection, {}),
}
CASES = [(kind, head) for kind in SMALL for head in HEADS if kind == "electra" or head != "replaced tokens"]


def torch_and_transformers() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed; the other side of the comparison runs on it")
    return torch, pytest.importorskip("transformers", reason="transformers is not installed; it is the other side")


def random_model(kind: str, head: str) -> Any:
    torch, transformers = torch_and_transformers()
    torch.manual_seed(0)
    suffix, _, options = HEADS[head]
    config = getattr(transformers, f"{PREFIX[kind]}Config")(**SMALL[kind], **options)
    model = getattr(transformers, PREFIX[kind] + suffix)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm.weight" in name.lower()), 0.2)
    return model.eval()


def make_inputs(kind: str) -> dict[str, np.ndarray]:
    """Three rows, padded on the right, on the left and not at all, in two segments where the model knows two."""
    rng, index, padding = np.random.default_rng(0), np.arange(40), 1 if kind == "roberta" else 0
    mask = np.stack([index < 27, index >= 13, index >= 0]).astype(np.int32)
    ids = np.where(mask, rng.integers(2, 90, mask.shape, np.int32), padding)
    types = np.broadcast_to((index > 20).astype(np.int32), mask.shape) * (kind != "roberta")
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def results(head: str, out: Any) -> list:
    """Hidden states, the embeddings first, or the logits."""
    if head == "encoder":
        return list(out.hidden_states)
    if head == "spans":
        return [np.stack([out.start_logits, out.end_logits], axis=-1)]
    logits = np.asarray(out.logits)
    if head == "choices":
        return [logits[0, :, None]]  # [1, B] -> [B, 1]
    return [logits[..., None] if head == "replaced tokens" else logits]


def run_torch(model: Any, head: str, inputs: dict[str, np.ndarray]) -> list:
    torch, _ = torch_and_transformers()
    tensors = {name: torch.tensor(array[None] if head == "choices" else array).long() for name, array in inputs.items()}
    with torch.no_grad():
        return results(head, model(**tensors, output_hidden_states=True))


def run_flax(config: DebertaConfig, params: dict, head: str, inputs: dict[str, np.ndarray]) -> list:
    if head == "choices":
        inputs = {name: array[None] for name, array in inputs.items()}
    options = {"output_hidden_states": True} if head == "encoder" else {}
    tree = params["deberta"] if head == "encoder" else params
    run = jax.jit(lambda tree: HEADS[head][1](config).apply({"params": tree}, **inputs, **options))
    return results(head, jax.device_get(run(tree)))


def on_real_tokens(array: Any, mask: np.ndarray) -> np.ndarray:
    """A head on the first token says nothing of a row that begins with padding."""
    real = mask.astype(bool)
    return np.asarray(array)[real if array.ndim == 3 else real[:, 0]]


# ------------------------------------------------------------------------------------------------------ transformers


@pytest.mark.torch
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_every_layer_and_every_head_equals_transformers_and_goes_back(tmp_path: Path, kind: str, head: str) -> None:
    model, inputs = random_model(kind, head), make_inputs(kind)
    model.save_pretrained(tmp_path / "theirs")
    config, params = load_pytorch(tmp_path / "theirs")
    assert config.model_type == kind
    want = run_torch(model, head, inputs)
    got = run_flax(config, params, head, inputs)
    assert len(got) == len(want)
    for index, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        both = (on_real_tokens(array, inputs["attention_mask"]) for array in (ours, theirs))
        assert_close(*both, 1e-4, f"{kind} {head} {index}")

    save_pytorch(tmp_path / "ours", config, params)
    config_again, params_again = load_pytorch(tmp_path / "ours")
    assert config_again == config
    assert_same(params_again, params)
    _, transformers = torch_and_transformers()
    # Names tell RoBERTa's and ELECTRA's multiple choice from their sequence classification, the numbers do not.
    as_one = head == "choices" and kind != "bert"
    suffix = "ForSequenceClassification" if as_one else HEADS[head][0]
    back, info = getattr(transformers, PREFIX[kind] + suffix).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    for theirs, again in zip(want, run_torch(back.eval(), "regression" if as_one else head, inputs), strict=True):
        assert_close(again, theirs, 1e-5, f"{kind} {head} of the export")
    fields = json.loads((tmp_path / "ours" / "config.json").read_text())
    unclear = head in ("regression", "choices")
    assert fields.get("architectures") == (None if unclear else [PREFIX[kind] + suffix])


@pytest.mark.torch
@pytest.mark.parametrize("kind", SMALL)
def test_given_positions_are_rows_of_the_table_as_in_transformers(tmp_path: Path, kind: str) -> None:
    model, inputs = random_model(kind, "encoder"), make_inputs(kind)
    model.save_pretrained(tmp_path)
    config, params = load_pytorch(tmp_path)
    inputs["position_ids"] = np.random.default_rng(1).integers(0, 42, inputs["input_ids"].shape, np.int32)
    both = run_flax(config, params, "encoder", inputs)[-1], run_torch(model, "encoder", inputs)[-1]
    assert_close(*(on_real_tokens(array, inputs["attention_mask"]) for array in both), 1e-4)


# -------------------------------------------------------------------------------------------------- published files


def encoder_keys(prefix: str, fields: dict, *, norm: tuple[str, str] = ("weight", "bias")) -> dict[str, tuple]:
    """Keys and shapes of an encoder as in the published files; norm: how its LayerNorms call their two arrays."""
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    narrow = fields.get("embedding_size", width)
    keys: dict[str, tuple] = {
        "embeddings.word_embeddings.weight": (fields["vocab_size"], narrow),
        "embeddings.position_embeddings.weight": (fields["max_position_embeddings"], narrow),
        "embeddings.token_type_embeddings.weight": (fields["type_vocab_size"], narrow),
    }
    keys |= {f"embeddings.LayerNorm.{name}": (narrow,) for name in norm}
    for i in range(fields["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        for name, shape in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }.items():
            keys |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            keys |= {f"{layer}{name}.{leaf}": (width,) for leaf in norm}
    return {prefix + key: shape for key, shape in keys.items()}


def linear(name: str, *shape: int) -> dict[str, tuple]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


D, V = TINY["hidden_size"], TINY["vocab_size"]
GAMMA = ("gamma", "beta")
# Name -> configuration, keys with shapes, the parts that come out, the last row of `verify`. From the warnings that
# transformers prints of them (its issues 7530 and 8407; "weights of the model checkpoint at ... were not used").
FILES: dict[str, tuple[dict, dict[str, tuple], set[str], str]] = {
    "bert-base-uncased": (
        SMALL["bert"],
        {
            **encoder_keys("bert.", SMALL["bert"], norm=GAMMA),
            **linear("bert.pooler.dense", D, D),
            **linear("cls.predictions.transform.dense", D, D),
            **{f"cls.predictions.transform.LayerNorm.{name}": (D,) for name in GAMMA},
            "cls.predictions.bias": (V,),
            "cls.predictions.decoder.weight": (V, D),
            **linear("cls.seq_relationship", 2, D),
        },
        {"deberta", "pooler", "mlm_head", "next_sentence_head"},
        "masked LM logits",
    ),
    "roberta-base": (
        SMALL["roberta"],
        {
            **encoder_keys("roberta.", SMALL["roberta"]),
            "roberta.embeddings.position_ids": (1, 42),
            **linear("roberta.pooler.dense", D, D),
            **linear("lm_head.dense", D, D),
            **linear("lm_head.layer_norm", D),
            "lm_head.bias": (V,),
            "lm_head.decoder.weight": (V, D),
        },
        {"deberta", "pooler", "mlm_head"},
        "masked LM logits",
    ),
    "roberta-large-mnli": (
        {
            **SMALL["roberta"],
            "_num_labels": 3,
            "id2label": {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"},
            "label2id": {"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2},
        },
        {
            **encoder_keys("roberta.", SMALL["roberta"]),
            "roberta.embeddings.position_ids": (1, 42),
            **linear("roberta.pooler.dense", D, D),
            **linear("classifier.dense", D, D),
            **linear("classifier.out_proj", 3, D),
        },
        {"deberta", "pooler", "classifier"},
        "classification logits",
    ),
    "electra-small-discriminator": (
        SMALL["electra"],
        {
            **encoder_keys("electra.", SMALL["electra"]),
            "electra.embeddings.position_ids": (1, 42),
            **linear("electra.embeddings_project", D, 16),
            **linear("discriminator_predictions.dense", D, D),
            **linear("discriminator_predictions.dense_prediction", 1, D),
        },
        {"deberta", "rtd_head"},
        "replaced token logits",
    ),
    "electra-base-discriminator": (
        {**SMALL["electra"], "embedding_size": D},
        {
            **encoder_keys("electra.", {**SMALL["electra"], "embedding_size": D}),
            **linear("electra.embeddings_project", D, D),  # nothing reads it
            **linear("discriminator_predictions.dense", D, D),
            **linear("discriminator_predictions.dense_prediction", 1, D),
        },
        {"deberta", "rtd_head"},
        "replaced token logits",
    ),
    "electra-small-generator": (
        SMALL["electra"],
        {
            **encoder_keys("electra.", SMALL["electra"]),
            **linear("electra.embeddings_project", D, 16),
            **linear("generator_predictions.dense", 16, D),
            **linear("generator_predictions.LayerNorm", 16),
            "generator_lm_head.weight": (V, 16),
            "generator_lm_head.bias": (V,),
        },
        {"deberta", "mlm_head"},
        "masked LM logits",
    ),
}


def write_published(folder: Path, name: str) -> None:
    """Random weights under the published names, the decoder tied to the embeddings."""
    from safetensors.numpy import save_file

    fields, shapes, _, _ = FILES[name]
    rng, state = np.random.default_rng(0), {}
    for key, shape in shapes.items():
        state[key] = rng.normal(0, 0.2, shape).astype(np.float32)
        if key.endswith(("norm.weight", "Norm.weight", "gamma")):
            state[key] += 1
    words = next(key for key in state if key.endswith("word_embeddings.weight"))
    for key in state:
        if key.endswith(("decoder.weight", "generator_lm_head.weight")):
            state[key] = state[words].copy()
        elif key.endswith("position_ids"):
            state[key] = np.arange(42)[None]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", FILES)
def test_published_keys_are_all_read_and_come_back(tmp_path: Path, name: str) -> None:
    write_published(tmp_path / "theirs", name)
    config, params = load_pytorch(tmp_path / "theirs")
    assert params.keys() == FILES[name][2]
    save_pytorch(tmp_path / "ours", config, params)
    again_config, again = load_pytorch(tmp_path / "ours")
    assert again_config == config
    assert_same(again, params)
    save_pretrained(tmp_path / "jax", config, params)
    assert load_pretrained(tmp_path / "jax")[0] == config


@pytest.mark.torch
@pytest.mark.parametrize("name", FILES)
def test_published_files_agree_with_transformers(tmp_path: Path, name: str) -> None:
    torch_and_transformers()
    write_published(tmp_path / "theirs", name)
    config, params = load_pytorch(tmp_path / "theirs")
    rows = verify.compare(tmp_path / "theirs", config, params)
    assert [row.name for row in rows] == ["embeddings", "layer 1", "layer 2 (last hidden state)", FILES[name][3]]
    assert all(row.agrees for row in rows), rows


@pytest.mark.torch
@pytest.mark.parametrize("name", ["bert-base-uncased", "roberta-base", "electra-small-discriminator"])
def test_one_wrong_weight_does_not_agree(tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    """And the command says so."""
    torch_and_transformers()
    write_published(tmp_path / "theirs", name)
    assert main(["verify", str(tmp_path / "theirs")]) == 0
    config, params = load_pytorch(tmp_path / "theirs")
    params["deberta"]["embeddings"]["position_embeddings"]["embedding"][3, 5] += 0.5
    save_pretrained(tmp_path / "ours", config, params)
    assert main(["verify", str(tmp_path / "theirs"), "--converted", str(tmp_path / "ours")]) == 1
    assert "4 of 4 rows differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("bert", ["pooler"]),
        ("bert", ["mlm_head", "pooler", "next_sentence_head"]),
        ("roberta", ["pooler", "classifier"]),
        ("roberta", ["classifier"]),
        ("electra", ["mlm_head"]),
        ("electra", ["rtd_head"]),
    ],
)
def test_converted_trees_are_those_of_the_models(kind: str, heads: list[str]) -> None:
    config = DebertaConfig.from_json(SMALL[kind])
    state = random_state(config, *heads)
    params = to_params(state, config)
    assert_same(to_state_dict(params, config), state)
    module = {
        ("pooler", "classifier"): models.DebertaForSequenceClassification,
        ("classifier",): models.DebertaForTokenClassification,
        ("mlm_head",): models.DebertaForMaskedLM,
        ("rtd_head",): models.DebertaForReplacedTokenDetection,
    }.get(tuple(heads))
    got = jax.tree.map(np.shape, params)
    if module is None:
        got, module = got["deberta"], models.Deberta
    shapes = jax.eval_shape(module(config.replace(num_labels=3)).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    assert got == jax.tree.map(lambda leaf: leaf.shape, shapes["params"])


def test_keys_of_another_model_are_named(tmp_path: Path) -> None:
    write_published(tmp_path / "theirs", "roberta-base")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(SMALL["bert"]))
    with pytest.raises(ConversionError, match=r"have 0 layers, .*; use the config\.json that belongs to them"):
        load_pytorch(tmp_path / "theirs")


# -------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_published_number_of_parameters(name: str) -> None:
    fields, parameters = PUBLISHED[name]
    config = DebertaConfig.from_json(fields)
    assert DebertaConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    shapes = jax.eval_shape(Deberta(config).init, jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_what_the_files_leave_unsaid() -> None:
    bert, roberta, electra = (
        DebertaConfig.from_json({"model_type": kind, "vocab_size": 100}) for kind in ("bert", "roberta", "electra")
    )
    assert (bert.layer_norm_eps, bert.type_vocab_size, bert.pooler_hidden_act, bert.mlm_head) == (
        1e-12,
        2,
        "tanh",
        "bert",
    )
    assert (bert.pad_token_id, bert.position_offset, bert.pooler_dropout) == (0, 0, 0.0)
    assert (roberta.pad_token_id, roberta.position_offset, roberta.pooler_dropout) == (1, 2, 0.1)
    assert (electra.embedding_size, electra.hidden_size, electra.pooler_hidden_act) == (128, 256, "gelu")
    dropout = DebertaConfig.from_json({"model_type": "roberta", "vocab_size": 100, "classifier_dropout": 0.3})
    assert (dropout.classifier_dropout, dropout.pooler_dropout) == (0.3, 0.3)
    assert dropout.to_json()["classifier_dropout"] == 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "xlnet"}, "model_type is 'xlnet'; encoders that can be read are deberta, deberta-v2, be"),
        ({"model_type": "roberta", "pad_token_id": 0}, "the padding id must be 1, as in every RoBERTa"),
        ({"model_type": "electra", "pad_token_id": 1}, "the padding id must be 0, as in every ELECTRA"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "of BERT only 'absolute' can be read"),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder is True; of BERT only False can be read"),
        ({"model_type": "bert", "relative_attention": True, "pos_att_type": "c2p"}, "'bert' it must be False"),
        ({"model_type": "roberta", "embedding_size": 96}, "embedding_size is 96; with model_type 'roberta' it must"),
        ({"model_type": "electra", "hidden_act": "relu"}, "hidden_act is 'relu'; with model_type 'electra' it must"),
        ({"model_type": "bert", "use_cach": True}, "unknown field 'use_cach'"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        DebertaConfig.from_json({"vocab_size": 100, **fields})
    assert message in str(error.value)


def test_a_configuration_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="model_type is 'albert'; it must be one of deberta, bert, roberta, electra"):
        DebertaConfig(vocab_size=100, model_type="albert")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- behavior


def last_hidden(kind: str, ids: np.ndarray, **given: Any) -> np.ndarray:
    config = DebertaConfig.from_json({**SMALL[kind], "initializer_range": 0.3})
    model = Deberta(config)
    params = model.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    return np.asarray(jax.jit(model.apply)(params, ids, **given).last_hidden_state)


@pytest.mark.parametrize("kind", SMALL)
def test_a_packed_pair_equals_two_single_runs(kind: str) -> None:
    ids = np.random.default_rng(0).integers(5, 90, (1, 20))
    packed = last_hidden(kind, ids, segment_ids=np.repeat([[1, 2]], [8, 12], axis=1))
    assert_close(packed[:, :8], last_hidden(kind, ids[:, :8]), 1e-5)
    assert_close(packed[:, 8:], last_hidden(kind, ids[:, 8:]), 1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_only_roberta_does_not_count_padding(kind: str) -> None:
    ids = np.random.default_rng(0).integers(5, 90, (1, 9))
    padded = np.pad(ids, ((0, 0), (4, 0)), constant_values=1)
    got = last_hidden(kind, padded, attention_mask=(np.arange(13) >= 4)[None].astype(np.int32))[:, 4:]
    difference = np.abs(got - last_hidden(kind, ids)).max()
    assert (difference < 1e-5) == (kind == "roberta")


def test_roberta_reads_its_one_token_type_whatever_is_given() -> None:
    ids = np.random.default_rng(0).integers(5, 90, (2, 9))
    types = np.repeat([[0, 1]], [4, 5], axis=1).repeat(2, axis=0)
    np.testing.assert_array_equal(last_hidden("roberta", ids, token_type_ids=types), last_hidden("roberta", ids))
    assert np.abs(last_hidden("bert", ids, token_type_ids=types) - last_hidden("bert", ids)).max() > 0.01


# ------------------------------------------------------------------------------------------------------- the harness


def write_tokenizer(folder: Path, kind: str) -> None:
    """Words of the test below, as each model's released files have them."""
    words = "the man woman was very happy".split()
    if kind != "roberta":
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        return
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["roberta", "electra"])  # either kind of tokenizer
def test_pytorch_files_are_converted_fine_tuned_and_exported(tmp_path: Path, kind: str) -> None:
    """By the commands: two kinds of sentences that differ by a word."""
    config = DebertaConfig.from_json({**SMALL[kind], "vocab_size": 300, "initializer_range": 0.1})
    encoder = Deberta(config).init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    save_pytorch(tmp_path / "theirs", config, {"deberta": encoder})
    write_tokenizer(tmp_path / "theirs", kind)
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    rows = [f"{'the man' if number % 2 else 'the woman'} was very happy\t{number % 2}" for number in range(64)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    options = {
        "output": tmp_path / "run",
        "model": tmp_path / "ours",
        "train": tmp_path / "train.tsv",
        "validation": tmp_path / "dev.tsv",
        "max-length": 40,
        "batch-size": 16,
        "steps": 40,
        "evaluate-every": 40,
        "optimizer.learning-rate": 3e-3,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["finetune", *arguments]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["validation"]["accuracy"] == 1
    assert main(["export", str(tmp_path / "run" / "model"), str(tmp_path / "back")]) == 0
    back, params = load_pytorch(tmp_path / "back")
    assert (back.model_type, sorted(params)) == (kind, ["classifier", "deberta", "pooler"])
