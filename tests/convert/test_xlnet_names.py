"""XLNet against transformers, every layer and head, and its published files.

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
from deberta_jax.convert.errors import ConversionError
from deberta_jax.convert.mapping import to_params

from ..support.golden_cases import assert_close
from ..support.harness import convert_finetune_export, torch_and_transformers
from ..support.pytorch_files import assert_same
from ..support.xlnet import LARGE, PUBLISHED, SMALL, padded_batch, pieces_model

State = dict[str, np.ndarray]
HEADS = {  # suffix of the class in transformers, our class, settings
    "encoder": ("Model", models.Deberta, {}),
    "language model": ("LMHeadModel", models.Deberta, {}),
    "classification": ("ForSequenceClassification", models.DebertaForSequenceClassification, {"num_labels": 3}),
    "regression": ("ForSequenceClassification", models.DebertaForSequenceClassification, {"num_labels": 1}),
    "tokens": ("ForTokenClassification", models.DebertaForTokenClassification, {"num_labels": 5}),
    "spans": ("ForQuestionAnsweringSimple", models.DebertaForQuestionAnswering, {}),
    "choices": ("ForMultipleChoice", models.DebertaForMultipleChoice, {}),
}
CASES = [(head, 41) for head in HEADS] + [("classification", 1), ("spans", 701), ("tokens", 8)]


def published_keys(fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the keys and shapes of the published pytorch_model.bin."""
    width, inner, heads, size = (fields[name] for name in ("d_model", "d_inner", "n_head", "d_head"))
    keys: dict[str, tuple[int, ...]] = {
        "transformer.mask_emb": (1, 1, width),
        "transformer.word_embedding.weight": (fields["vocab_size"], width),
    }
    for i in range(fields["n_layer"]):
        attention, forward = f"transformer.layer.{i}.rel_attn.", f"transformer.layer.{i}.ff."
        keys |= {f"{attention}{name}": (width, heads, size) for name in "qkvor"}
        keys |= {f"{attention}r_{name}_bias": (heads, size) for name in "rsw"}
        keys |= {f"{attention}seg_embed": (2, heads, size)}
        keys |= {f"{part}layer_norm.{leaf}": (width,) for part in (attention, forward) for leaf in ("weight", "bias")}
        keys |= {f"{forward}layer_1.weight": (inner, width), f"{forward}layer_1.bias": (inner,)}
        keys |= {f"{forward}layer_2.weight": (width, inner), f"{forward}layer_2.bias": (width,)}
    return keys | {"lm_loss.weight": (fields["vocab_size"], width), "lm_loss.bias": (fields["vocab_size"],)}


def write_published(folder: Path, *, fields: dict[str, Any] = SMALL, changes: State | None = None) -> State:
    """Writes random weights under the published names, with the language model tied to the embeddings."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    state = {key: rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in published_keys(fields).items()}
    state["lm_loss.weight"] = state["transformer.word_embedding.weight"].copy()
    state |= changes or {}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


def read_state(folder: Path) -> State:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


# -------------------------------------------------------------------------------------------------- published files


def test_all_published_keys_are_read_and_exported(tmp_path: Path) -> None:
    state = write_published(tmp_path / "published")
    config, params = load_pytorch(tmp_path / "published")
    assert sorted(params) == ["deberta", "permutation_lm_head"]
    save_pytorch(tmp_path / "exported", config, params)
    del state["lm_loss.weight"]  # tied
    assert_same(read_state(tmp_path / "exported"), state)
    again_config, again = load_pytorch(tmp_path / "exported")
    assert again_config == config
    assert_same(again, params)
    save_pretrained(tmp_path / "jax", config, params)
    assert load_pretrained(tmp_path / "jax")[0] == config
    encoder = load_pytorch(tmp_path / "published", include=("deberta",))[1]
    assert_same(encoder, {"deberta": params["deberta"]})
    shapes = jax.eval_shape(Deberta(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    assert jax.tree.map(np.shape, params["deberta"]) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_an_encoder_that_was_saved_alone_is_read(tmp_path: Path) -> None:
    state = write_published(tmp_path / "published")
    config, params = load_pytorch(tmp_path / "published")
    alone = {key.removeprefix("transformer."): array for key, array in state.items() if key.startswith("transformer.")}
    assert_same(to_params(alone, config), {"deberta": params["deberta"]})


def test_a_head_that_searches_with_beams_is_refused(tmp_path: Path) -> None:
    heads = {"start_logits.dense.weight": np.ones((1, 32), np.float32), "answer_class.dense_1.weight": np.ones(3)}
    write_published(tmp_path / "published", changes={key: array.astype(np.float32) for key, array in heads.items()})
    with pytest.raises(ConversionError, match=r"answer_class\.dense_1\.weight.*searches with beams.*include 'deberta'"):
        load_pytorch(tmp_path / "published")
    assert load_pytorch(tmp_path / "published", include=("deberta",))[1].keys() == {"deberta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer.layer.1.rel_attn.q": (32, 2, 16)}, r"layer\.1\.rel_attn\.q has shape \(32, 2, 16\), but the co"),
        ({"transformer.mask_emb": (32,)}, r"mask_emb has shape \(32,\), but the configuration requires \(1, 1, 32\)"),
        ({"transformer.layer.0.rel_attn.x": (32,)}, r"unexpected: .*rel_attn\.x"),
        ({"transformer.layer.2.rel_attn.q": (32, 4, 8)}, "have 3 layers, but the configuration says num_hidden_layers"),
        ({"lm_loss.weight": (90, 32)}, r"differs from deberta\.embeddings\.word_embeddings\.weight; only a tied"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, changes: dict[str, tuple], message: str) -> None:
    arrays = {key: np.full(shape, 0.5, np.float32) for key, shape in changes.items()}
    write_published(tmp_path / "published", changes=arrays)
    with pytest.raises(ConversionError, match=message):
        load_pytorch(tmp_path / "published")


@pytest.mark.torch
@pytest.mark.parametrize("fields", [PUBLISHED, LARGE])
def test_published_keys_are_those_of_transformers(fields: dict[str, Any]) -> None:
    torch, transformers = torch_and_transformers()
    with torch.device("meta"):
        model = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**fields))
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == published_keys(fields)


# ------------------------------------------------------------------------------------------------------ transformers


def random_model(head: str) -> Any:
    torch, transformers = torch_and_transformers()
    torch.manual_seed(0)
    suffix, _, options = HEADS[head]
    fields = {name: value for name, value in SMALL.items() if name != "architectures"}
    model = getattr(transformers, f"XLNet{suffix}")(transformers.XLNetConfig(**fields, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm.weight" in name), 0.2)
    return model.eval()


def results(head: str, out: Any) -> list[np.ndarray]:
    """Returns the hidden states and attention probabilities, and the logits."""
    arrays = [*out.hidden_states, *(np.swapaxes(np.asarray(array), -3, -2) for array in out.attentions)]
    if head == "spans":
        arrays += [out.start_logits, out.end_logits]
    elif head not in ("encoder", "language model"):
        arrays.append(out.logits)
    return [np.asarray(array) for array in arrays]


def run_torch(model: Any, head: str, inputs: State) -> list[np.ndarray]:
    import torch

    tensors = {name: torch.tensor(array[None] if head == "choices" else array).long() for name, array in inputs.items()}
    with torch.no_grad():
        return results(head, model(**tensors, output_hidden_states=True, output_attentions=True))


def run_flax(config: DebertaConfig, params: dict, head: str, inputs: State) -> list[np.ndarray]:
    model, options = HEADS[head][1](config), {"output_hidden_states": True, "output_attentions": True}
    batch = {name: array[None] if head == "choices" else array for name, array in inputs.items()}
    tree = params["deberta"] if isinstance(model, Deberta) else params
    return results(head, jax.device_get(jax.jit(lambda tree: model.apply({"params": tree}, **batch, **options))(tree)))


@pytest.mark.torch
@pytest.mark.parametrize(("head", "length"), CASES)
def test_every_layer_and_head_equals_transformers_and_is_exported(tmp_path: Path, head: str, length: int) -> None:
    model, inputs = random_model(head), padded_batch(length)
    model.save_pretrained(tmp_path / "published")
    config, params = load_pytorch(tmp_path / "published")
    want, got = run_torch(model, head, inputs), run_flax(config, params, head, inputs)
    assert len(got) == len(want)
    real = inputs["attention_mask"].astype(bool)
    for index, (array, wanted) in enumerate(zip(got, want, strict=True)):
        both = [x.reshape(len(real), -1) if x.size <= 15 else x.reshape(*real.shape, -1)[real] for x in (array, wanted)]
        assert_close(*both, 1e-5, f"{head} {index}")

    save_pytorch(tmp_path / "exported", config, params)
    config_again, params_again = load_pytorch(tmp_path / "exported")
    assert config_again == config
    assert_same(params_again, params)
    back, info = type(model).from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not any(info.values()), info
    assert {key: tensor.tolist() for key, tensor in back.state_dict().items()} == {
        key: tensor.tolist() for key, tensor in model.state_dict().items()
    }
    fields = json.loads((tmp_path / "exported" / "config.json").read_text())
    unclear = head in ("regression", "choices")
    assert fields.get("architectures") == (None if unclear else [f"XLNet{HEADS[head][0]}"])


@pytest.mark.torch
def test_padding_on_the_right_gives_transformers_logits_of_padding_on_the_left(tmp_path: Path) -> None:
    model, left = random_model("classification"), padded_batch(30, ends=("left", "left"))
    model.save_pretrained(tmp_path)
    config, params = load_pytorch(tmp_path)
    right = {name: np.roll(array, -10, axis=1) for name, array in left.items()}
    assert right["attention_mask"][:, :20].all()
    assert not right["attention_mask"][:, 20:].any()
    logits = run_torch(model, "classification", left)[-1]
    assert_close(run_flax(config, params, "classification", right)[-1], logits, 1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("head", ["language model", "classification", "tokens", "spans"])
def test_verify_compares_the_layers_and_finds_a_wrong_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture, head: str
) -> None:
    random_model(head).save_pretrained(tmp_path / "published")
    config, params = load_pytorch(tmp_path / "published")
    rows = verify.compare(tmp_path / "published", config, params)
    names = {"classification": "classification logits", "tokens": "token classification logits"}
    last = [] if head == "language model" else [names.get(head, "start and end logits")]
    assert [row.name for row in rows] == ["embeddings", "layer 1", "layer 2 (last hidden state)", *last]
    assert all(row.agrees for row in rows), rows
    if head == "tokens":
        assert main(["verify", str(tmp_path / "published")]) == 0
        params["deberta"]["encoder"]["layer_0"]["attention"]["segment_bias"]["bias"][0, 0] += 3
        save_pretrained(tmp_path / "jax", config, params)
        assert main(["verify", str(tmp_path / "published"), "--converted", str(tmp_path / "jax")]) == 1
        assert "3 of 4 rows differ" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- the harness


@pytest.mark.slow
def test_commands_convert_finetune_and_export(tmp_path: Path) -> None:
    """Learns to tell two kinds of sentences apart that differ by a word."""
    fields = {**SMALL, "vocab_size": 600, "initializer_range": 0.1}
    write_published(tmp_path / "published", fields=fields)
    (tmp_path / "published" / "spiece.model").write_bytes(pieces_model())
    exported = convert_finetune_export(tmp_path)
    back, params = load_pytorch(exported)
    assert (back.model_type, sorted(params)) == ("xlnet", ["classifier", "deberta", "pooler"])
    assert (exported / "spiece.model").read_bytes() == pieces_model()
