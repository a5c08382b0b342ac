"""Weights as other libraries save them: prefixes, foreign layers beside the encoder, training states, adapters."""

import json
import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deberta_jax import DebertaConfig, UserError
from deberta_jax.convert import ConversionError, load_pytorch, save_pytorch
from deberta_jax.convert.containers import find_state_dict
from deberta_jax.convert.mapping import to_params

from ..support.pytorch_files import (
    MLM,
    RTD,
    V1,
    V3,
    State,
    assert_same,
    bin_bytes,
    random_state,
    write_json,
    write_safetensors,
)

BERT = DebertaConfig.from_json(
    {
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
)
FOREIGN = {  # layers of GLiNER and of SentenceTransformer
    "rnn.lstm.weight_ih_l0": np.ones((4, 4), np.float32),
    "span_rep_layer.span_rep_layer.project_start.0.weight": np.ones((4, 4), np.float32),
    "encoder.project.weight": np.ones((4, 4), np.float32),
}


def prefixed(state: State, prefix: str, *, alone: bool = False) -> State:
    """Puts a prefix before every name; `alone` removes the name of the family before it."""
    return {prefix + (key.removeprefix("deberta.") if alone else key): array for key, array in state.items()}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "base_model.model.", "module._orig_mod.model."])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_prefix_of_all_names_is_removed_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str, kind: str
) -> None:
    state = random_state(V3, "pooler", "classifier")
    if kind == "bin":
        write_json(tmp_path, V3)
        (tmp_path / "pytorch_model.bin").write_bytes(bin_bytes(prefixed(state, prefix)))
    else:
        write_safetensors(tmp_path, V3, prefixed(state, prefix))
    config, params = load_pytorch(tmp_path)
    assert_same(params, to_params(state, V3))
    assert config.num_labels == 3
    assert caplog.messages == [f"removed from the names of the weights: {prefix}"]


@pytest.mark.parametrize(
    "prefix",
    ["0.auto_model.", "encoder.", "model.encoder.", "backbone.", "deberta_v2.", "token_rep_layer.bert_layer.model."],
)
def test_an_encoder_is_found_under_any_prefix(tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str) -> None:
    encoder = random_state(V3)
    write_safetensors(tmp_path, V3, prefixed(encoder, prefix, alone=True))
    assert_same(load_pytorch(tmp_path)[1], to_params(encoder, V3))
    assert caplog.messages == [f"removed from the names of the weights: {prefix}"]


def test_wrappers_inside_a_name_are_removed(tmp_path: Path) -> None:
    state = random_state(V1, MLM)
    wrapped = {
        key.replace("deberta.", "deberta.module.").replace(".layer.1.", ".layer.1._orig_mod."): state[key]
        for key in state
    }
    write_safetensors(tmp_path, V1, wrapped)
    assert_same(load_pytorch(tmp_path)[1], to_params(state, V1))


def test_baselines_keep_the_name_of_their_family(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_pytorch(tmp_path / "plain", BERT, to_params(random_state(BERT, "pooler", "classifier"), BERT))
    _, want = load_pytorch(tmp_path / "plain")
    assert not caplog.messages
    from safetensors.numpy import load_file, save_file

    (tmp_path / "wrapped").mkdir()
    (tmp_path / "wrapped" / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    state = load_file(tmp_path / "plain" / "model.safetensors")
    save_file(prefixed(state, "module."), tmp_path / "wrapped" / "model.safetensors")
    assert_same(load_pytorch(tmp_path / "wrapped")[1], want)


@pytest.mark.parametrize("prefix", ["token_rep_layer.bert_layer.model.", "deberta.", "0.auto_model.", ""])
def test_include_reads_an_encoder_out_of_any_container(tmp_path: Path, prefix: str) -> None:
    encoder, foreign = random_state(V3), dict(FOREIGN)
    if prefix in ("", "deberta."):  # `encoder.project` would be a layer of this encoder
        del foreign["encoder.project.weight"]
    state = prefixed(encoder, prefix, alone=True) | foreign
    write_safetensors(tmp_path, V3, state | {"cls.predictions.decoder.weight": np.ones((50, 16), np.float32)})
    assert_same(load_pytorch(tmp_path, include=("deberta",))[1], to_params(encoder, V3))
    with pytest.raises(ConversionError, match=r"unexpected: .*rnn\.lstm|differs from"):
        load_pytorch(tmp_path)
    layer = next(key for key in state if "layer.1." in key)
    write_safetensors(tmp_path, V3, {key: array for key, array in state.items() if key != layer})
    with pytest.raises(ConversionError, match=r"missing: deberta\.encoder\.layer\.\*"):
        load_pytorch(tmp_path, include=("deberta",))
    write_safetensors(tmp_path, V3, state | {layer.replace("layer.1.", "layer.2."): state[layer]})
    with pytest.raises(ConversionError, match="these weights have 3 layers"):
        load_pytorch(tmp_path, include=("deberta",))


def test_gliner_has_the_configuration_of_its_encoder(tmp_path: Path) -> None:
    encoder = random_state(V3)
    path = write_safetensors(tmp_path, V3, prefixed(encoder, "token_rep_layer.bert_layer.model.", alone=True) | FOREIGN)
    (tmp_path / "config.json").unlink()
    gliner = {"model_name": "microsoft/deberta-v3-small", "span_mode": "markerV0", "encoder_config": V3.to_json()}
    (tmp_path / "gliner_config.json").write_text(json.dumps(gliner))
    config, params = load_pytorch(tmp_path, filename=path.name, include=("deberta",))
    assert config == V3
    assert_same(params, to_params(encoder, V3))
    (tmp_path / "gliner_config.json").write_text(json.dumps({**gliner, "encoder_config": None}))
    with pytest.raises(
        ConversionError, match=r"no encoder_config; copy the config\.json of microsoft/deberta-v3-small"
    ):
        load_pytorch(tmp_path, include=("deberta",))


def test_several_encoders_are_not_guessed(tmp_path: Path) -> None:
    state = random_state(V3)
    write_safetensors(tmp_path, V3, prefixed(state, "query.") | prefixed(state, "document."))
    with pytest.raises(ConversionError, match=r"several encoders, under document\., query\."):
        load_pytorch(tmp_path)
    write_safetensors(tmp_path, V3, prefixed(state, "module.") | {"deberta.embeddings.LayerNorm.bias": np.ones(16)})
    with pytest.raises(ConversionError, match=r"twice, with a prefix and without: deberta.embeddings.LayerNorm.bias"):
        load_pytorch(tmp_path)


@pytest.mark.parametrize("path", [("model",), ("state_dict",), ("checkpoint", "model_state_dict"), ("weights",)])
def test_a_state_dict_inside_a_training_state_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: tuple[str, ...]
) -> None:
    state = random_state(V3, RTD)
    # `bin_bytes` pickles one flat dict; what PyTorch nests is the same objects in further dicts.
    saved: Any = state
    for name in reversed(path):
        saved = {"epoch": 3, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}, name: saved}
    assert find_state_dict(saved) is state
    assert caplog.messages == [f"the weights are those under {'.'.join(path)!r}; the rest of the file is not used"]
    assert find_state_dict(state) is state
    assert find_state_dict({"epoch": 3}) == {"epoch": 3}
    saved["itself"] = saved
    assert find_state_dict(saved) is state


def test_the_usual_name_wins_among_several_state_dicts() -> None:
    state = random_state(V3)
    assert find_state_dict({"ema": dict(state), "model": state}) is state
    with pytest.raises(ConversionError, match="several models, ema, student; save the state dict of one of them alone"):
        find_state_dict({"ema": state, "student": dict(state)})


@pytest.mark.torch
def test_training_states_of_pytorch_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the file")
    state = random_state(V3, MLM)
    tensors = {key: torch.tensor(array) for key, array in prefixed(state, "module.").items()}
    write_json(tmp_path, V3)
    for new in (True, False):
        training = {"model": tensors, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3}
        torch.save(training, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new)
        assert_same(load_pytorch(tmp_path)[1], to_params(state, V3))


def test_checkpoints_of_lightning_are_found(tmp_path: Path) -> None:
    write_json(tmp_path, V3)
    (tmp_path / "epoch=3.ckpt").write_bytes(bin_bytes(prefixed(random_state(V3), "model.")))
    for name in ("optimizer.pt", "training_args.bin"):
        (tmp_path / name).touch()
    assert_same(load_pytorch(tmp_path)[1], to_params(random_state(V3), V3))


def test_configurations_of_generators_are_read_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "pytorch_model.generator.bin"
    (tmp_path / name).write_bytes(bin_bytes(random_state(V3, MLM)))
    for extra in ({"use_cache": True, "auto_map": {}}, {"layer_norm_epsilon": 1e-5}):
        (tmp_path / "generator_config.json").write_text(json.dumps(V3.to_json() | extra))
        if "auto_map" in extra:
            assert load_pytorch(tmp_path, filename=name)[0] == V3
            assert caplog.messages == [f"{tmp_path / 'generator_config.json'}: fields that are not used: auto_map"]
        else:
            with pytest.raises(UserError, match="Did you mean 'layer_norm_eps'"):
                load_pytorch(tmp_path, filename=name)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.deberta.encoder.layer.0.attention.self.query_proj.lora_A.weight",
        "base_model.model.deberta.encoder.layer.0.attention.self.query_proj.lora_B.default.weight",
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.deberta.encoder.layer.0.output.dense.base_layer.weight",
    ],
)
def test_adapters_that_are_not_merged_are_refused_by_name(tmp_path: Path, name: str) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ones((2, 2), np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConversionError, match=r"an adapter that is not merged: base_model.*; call merge_and_unload"):
        load_pytorch(tmp_path)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_quantized_tensors_are_refused(tmp_path: Path, dtype: Any) -> None:
    state: dict[str, Any] = random_state(V3)
    name = "deberta.encoder.layer.1.output.dense.weight"
    state[name] = state[name].astype(dtype)
    write_safetensors(tmp_path, V3, state)
    with pytest.raises(ConversionError, match="quantized weights are not supported: use the original weights"):
        load_pytorch(tmp_path)
    write_safetensors(tmp_path, V3, {**state, name.replace("weight", "SCB"): np.ones(16, np.float32)})
    with pytest.raises(ConversionError, match=r"these weights are quantized: .*\.dense\.SCB"):
        load_pytorch(tmp_path)


@pytest.mark.parametrize("head", ["classifier", "span_classifier"])
def test_names_of_another_head_do_not_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str) -> None:
    """RACE and SQuAD models that were fine-tuned from an NLI model keep its three names in their configuration."""
    nli = V3.replace(num_labels=3, label_names=("entailment", "neutral", "contradiction"))
    state = random_state(V3, *(["pooler"] if head == "classifier" else []), head, classes=1)
    write_safetensors(tmp_path, nli, state)
    config, params = load_pytorch(tmp_path)
    classes = params[head]["bias"].size
    assert (config.num_labels, config.label_names) == (classes, ())
    assert caplog.messages == [
        f"the head has {classes} outputs; the 3 names in config.json belong to another head and are not kept: "
        "entailment, neutral, contradiction"
    ]
    save_pytorch(tmp_path / "exported", nli, params)
    assert load_pytorch(tmp_path / "exported")[0] == config


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "single_label_classification"])
def test_the_problem_type_is_carried_through(tmp_path: Path, problem: Any) -> None:
    config = V3.replace(num_labels=3, label_names=("a", "b", "c"), problem_type=problem)
    write_safetensors(tmp_path, config, random_state(V3, "pooler", "classifier"))
    loaded, params = load_pytorch(tmp_path)
    assert loaded == config
    save_pytorch(tmp_path / "exported", loaded, params)
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["problem_type"] == problem


def test_microsofts_ner_head_is_in_the_configuration(tmp_path: Path) -> None:
    write_safetensors(tmp_path, V3, random_state(V3, "token_proj", "classifier"))
    config, params = load_pytorch(tmp_path)
    assert config == V3.replace(token_projection=True, num_labels=3)
    write_safetensors(tmp_path, config, random_state(V3, "classifier"))
    assert not load_pytorch(tmp_path)[0].token_projection
    with pytest.raises(ConversionError, match="no layer for token_proj"):
        save_pytorch(tmp_path / "exported", config, params)


def test_a_message_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_safetensors(tmp_path, V3, prefixed(random_state(V3), "module."))
    fields = {**V3.to_json(), "use_cache": True, "sentence_transformers": {}, "auto_map": {}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    load_pytorch(tmp_path)
    assert caplog.messages == [
        "removed from the names of the weights: module.",
        f"{tmp_path / 'config.json'}: fields that are not used: auto_map, sentence_transformers",
    ]
