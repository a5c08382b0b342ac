"""BERT, RoBERTa and ELECTRA against transformers, and their published PyTorch files, read by the same table.

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
from deberta_jax.convert import load_pytorch, save_pytorch, verify
from deberta_jax.convert.mapping import to_params, to_state_dict
from deberta_jax.convert.quirks import ConversionError

from ..support.baselines import SMALL, TINY
from ..support.golden_cases import assert_close
from ..support.harness import convert_finetune_export, torch_and_transformers
from ..support.pytorch_files import assert_same, random_state

PREFIX = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra"}
HEADS = {  # suffix of the class in transformers, our class, settings
    "encoder": ("Model", models.Deberta, {}),
    "masked LM": ("ForMaskedLM", models.DebertaForMaskedLM, {}),
    "classification": ("ForSequenceClassification", models.DebertaForSequenceClassification, {"num_labels": 3}),
    "regression": ("ForSequenceClassification", models.DebertaForSequenceClassification, {"num_labels": 1}),
    "tokens": ("ForTokenClassification", models.DebertaForTokenClassification, {"num_labels": 5}),
    "spans": ("ForQuestionAnswering", models.DebertaForQuestionAnswering, {}),
    "choices": ("ForMultipleChoice", models.DebertaForMultipleChoice, {}),
    "replaced tokens": ("ForPreTraining", models.DebertaForReplacedTokenDetection, {}),
}
CASES = [(family, head) for family in SMALL for head in HEADS if family == "electra" or head != "replaced tokens"]


def random_model(family: str, head: str) -> Any:
    torch, transformers = torch_and_transformers()
    torch.manual_seed(0)
    suffix, _, options = HEADS[head]
    config = getattr(transformers, f"{PREFIX[family]}Config")(**SMALL[family], **options)
    model = getattr(transformers, PREFIX[family] + suffix)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm.weight" in name.lower()), 0.2)
    return model.eval()


def make_inputs(family: str) -> dict[str, np.ndarray]:
    """Returns three rows, padded on the right, on the left and not at all, of two token types if the model has two."""
    rng, index, padding = np.random.default_rng(0), np.arange(40), 1 if family == "roberta" else 0
    mask = np.stack([index < 27, index >= 13, index >= 0]).astype(np.int32)
    ids = np.where(mask, rng.integers(2, 90, mask.shape, np.int32), padding)
    types = np.broadcast_to((index > 20).astype(np.int32), mask.shape) * (family != "roberta")
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def results(head: str, out: Any) -> list:
    """Returns the hidden states, embeddings first, or the logits."""
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
    """Selects real tokens, or the rows that do not start with padding, which the heads on the first token read."""
    real = mask.astype(bool)
    return np.asarray(array)[real if array.ndim == 3 else real[:, 0]]


# ------------------------------------------------------------------------------------------------------ transformers


@pytest.mark.torch
@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_layer_and_head_equals_transformers_and_is_exported(tmp_path: Path, family: str, head: str) -> None:
    model, inputs = random_model(family, head), make_inputs(family)
    model.save_pretrained(tmp_path / "published")
    config, params = load_pytorch(tmp_path / "published")
    assert config.model_type == family
    want = run_torch(model, head, inputs)
    got = run_flax(config, params, head, inputs)
    assert len(got) == len(want)
    for index, arrays in enumerate(zip(got, want, strict=True)):
        both = (on_real_tokens(array, inputs["attention_mask"]) for array in arrays)
        assert_close(*both, 1e-4, f"{family} {head} {index}")

    save_pytorch(tmp_path / "exported", config, params)
    config_again, params_again = load_pytorch(tmp_path / "exported")
    assert config_again == config
    assert_same(params_again, params)
    _, transformers = torch_and_transformers()
    # RoBERTa's and ELECTRA's multiple choice differ from their sequence classification only in the class name.
    as_one = head == "choices" and family != "bert"
    suffix = "ForSequenceClassification" if as_one else HEADS[head][0]
    back, info = getattr(transformers, PREFIX[family] + suffix).from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not any(info.values()), info
    for array, again in zip(want, run_torch(back.eval(), "regression" if as_one else head, inputs), strict=True):
        assert_close(again, array, 1e-5, f"{family} {head} of the export")
    fields = json.loads((tmp_path / "exported" / "config.json").read_text())
    unclear = head in ("regression", "choices")
    assert fields.get("architectures") == (None if unclear else [PREFIX[family] + suffix])


@pytest.mark.torch
@pytest.mark.parametrize("family", SMALL)
def test_position_ids_are_rows_of_the_table_as_in_transformers(tmp_path: Path, family: str) -> None:
    model, inputs = random_model(family, "encoder"), make_inputs(family)
    model.save_pretrained(tmp_path)
    config, params = load_pytorch(tmp_path)
    inputs["position_ids"] = np.random.default_rng(1).integers(0, 42, inputs["input_ids"].shape, np.int32)
    both = run_flax(config, params, "encoder", inputs)[-1], run_torch(model, "encoder", inputs)[-1]
    assert_close(*(on_real_tokens(array, inputs["attention_mask"]) for array in both), 1e-4)


# -------------------------------------------------------------------------------------------------- published files


def encoder_keys(prefix: str, fields: dict, *, norm: tuple[str, str] = ("weight", "bias")) -> dict[str, tuple]:
    """Returns the keys and shapes of an encoder in the published files; norm has the names of a LayerNorm's arrays."""
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
# Name -> configuration, keys with shapes, the converted parts, the last row of `verify`. From the warnings that
# transformers prints about them (its issues 7530 and 8407; "weights of the model checkpoint at ... were not used").
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
            **linear("electra.embeddings_project", D, D),  # unused
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
    """Writes random weights under the published names, with the decoder tied to the embeddings."""
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
def test_all_published_keys_are_read_and_exported(tmp_path: Path, name: str) -> None:
    write_published(tmp_path / "published", name)
    config, params = load_pytorch(tmp_path / "published")
    assert params.keys() == FILES[name][2]
    save_pytorch(tmp_path / "exported", config, params)
    again_config, again = load_pytorch(tmp_path / "exported")
    assert again_config == config
    assert_same(again, params)
    save_pretrained(tmp_path / "jax", config, params)
    assert load_pretrained(tmp_path / "jax")[0] == config


@pytest.mark.torch
@pytest.mark.parametrize("name", FILES)
def test_published_files_agree_with_transformers(tmp_path: Path, name: str) -> None:
    torch_and_transformers()
    write_published(tmp_path / "published", name)
    config, params = load_pytorch(tmp_path / "published")
    rows = verify.compare(tmp_path / "published", config, params)
    assert [row.name for row in rows] == ["embeddings", "layer 1", "layer 2 (last hidden state)", FILES[name][3]]
    assert all(row.agrees for row in rows), rows


@pytest.mark.torch
@pytest.mark.parametrize("name", ["bert-base-uncased", "roberta-base", "electra-small-discriminator"])
def test_verify_finds_one_wrong_weight(tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    torch_and_transformers()
    write_published(tmp_path / "published", name)
    assert main(["verify", str(tmp_path / "published")]) == 0
    config, params = load_pytorch(tmp_path / "published")
    params["deberta"]["embeddings"]["position_embeddings"]["embedding"][3, 5] += 0.5
    save_pretrained(tmp_path / "exported", config, params)
    assert main(["verify", str(tmp_path / "published"), "--converted", str(tmp_path / "exported")]) == 1
    assert "4 of 4 rows differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "heads"),
    [
        ("bert", ["pooler"]),
        ("bert", ["mlm_head", "pooler", "next_sentence_head"]),
        ("roberta", ["pooler", "classifier"]),
        ("roberta", ["classifier"]),
        ("electra", ["mlm_head"]),
        ("electra", ["rtd_head"]),
    ],
)
def test_converted_trees_equal_those_of_the_models(family: str, heads: list[str]) -> None:
    config = DebertaConfig.from_json(SMALL[family])
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
    write_published(tmp_path / "published", "roberta-base")
    (tmp_path / "published" / "config.json").write_text(json.dumps(SMALL["bert"]))
    with pytest.raises(ConversionError, match=r"have 0 layers, .*; use the config\.json that belongs to them"):
        load_pytorch(tmp_path / "published")


# ------------------------------------------------------------------------------------------------------- the harness


def write_tokenizer(folder: Path, family: str) -> None:
    """Writes a tokenizer with the words of the test below, in the files of each model."""
    words = "the man woman was very happy".split()
    if family != "roberta":
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        return
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "electra"])  # both kinds of tokenizers
def test_commands_convert_finetune_and_export(tmp_path: Path, family: str) -> None:
    """Learns to tell two kinds of sentences apart that differ by a word."""
    config = DebertaConfig.from_json({**SMALL[family], "vocab_size": 300, "initializer_range": 0.1})
    encoder = Deberta(config).init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    save_pytorch(tmp_path / "published", config, {"deberta": encoder})
    write_tokenizer(tmp_path / "published", family)
    exported = convert_finetune_export(tmp_path)
    back, params = load_pytorch(exported)
    assert (back.model_type, sorted(params)) == (family, ["classifier", "deberta", "pooler"])
