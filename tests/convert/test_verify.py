"""`deberta-jax verify` on small random models of every version and head, and on folders that are wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from deberta_jax import DebertaConfig, save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.convert import load_pytorch, save_pytorch, verify
from deberta_jax.convert.mapping import to_params

from ..support.pytorch_files import MLM, RTD, V1, V2_CONV, V3, State, random_state, write_json, write_safetensors

BIASED = V3.replace(position_biased_input=True, type_vocab_size=2)
# Name: configuration, heads, name of the last row.
CASES = {
    "v1": (V1, [MLM], "masked LM logits"),
    "v1-classifier": (V1, ["pooler", "classifier"], "classification logits"),
    "v2-conv": (V2_CONV, ["pooler", "classifier"], "classification logits"),
    "v2-conv-mlm": (V2_CONV, [MLM], "masked LM logits"),
    "v3-discriminator": (V3, [MLM, RTD], "masked LM logits"),
    "v3-legacy": (V3.replace(mlm_head="legacy"), [MLM], "masked LM logits"),
    "v3-tokens": (V3, ["classifier"], "token classification logits"),
    "v3-spans": (V3, ["span_classifier"], "start and end logits"),
    "position-biased": (BIASED, [], None),
}
# Combinations of a version and a head that other cases cover one by one, and `test_parity` together.
REDUNDANT = ("v1-classifier", "v2-conv-mlm", "v3-discriminator")


def require_torch_and_transformers() -> None:
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed; verify compares with transformers on PyTorch")


def state_of(config: DebertaConfig, heads: list[str]) -> State:
    """Returns random weights that the layout of the configuration's version can hold."""
    state = random_state(config, *heads)
    if not config.share_att_key:  # version 1 has no key biases
        state = {key: array * (not key.endswith("key_proj.bias")) for key, array in state.items()}
    return state


def export(folder: Path, config: DebertaConfig, heads: list[str]) -> Path:
    save_pytorch(folder, config, to_params(state_of(config, heads), config))
    return folder


@pytest.mark.torch
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] if case in REDUNDANT else []) for case in CASES]
)
def test_exported_models_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    require_torch_and_transformers()
    config, heads, last_row = CASES[case]
    folder = export(tmp_path, config, heads)
    assert main(["verify", str(folder)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[-1:] == ["ok"]]
    rows = [line.split("  ")[1].strip() for line in lines]
    assert rows == ["embeddings", "layer 1", "layer 2 (last hidden state)", *([last_row] if last_row else [])]


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["float64", "float16", "bin"])
def test_published_file_formats_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Microsoft's names and configuration, other number formats, and a pickle."""
    require_torch_and_transformers()
    state = state_of(V2_CONV, [MLM, RTD])
    if kind == "bin":
        import torch

        write_json(tmp_path, V2_CONV)
        torch.save({key: torch.from_numpy(array) for key, array in state.items()}, tmp_path / "pytorch_model.bin")
    else:
        write_safetensors(tmp_path, V2_CONV, {key: array.astype(kind) for key, array in state.items()})
    assert main(["verify", str(tmp_path)]) == 0
    assert "masked LM logits" in capsys.readouterr().out


@pytest.mark.torch
def test_changed_weight_in_a_converted_folder_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_torch_and_transformers()
    folder = export(tmp_path / "exported", *CASES["v2-conv"][:2])
    config, params = load_pytorch(folder)
    save_pretrained(tmp_path / "converted", config, params)
    assert main(["verify", str(folder), "--converted", str(tmp_path / "converted")]) == 0
    params["deberta"]["encoder"]["layer_1"]["feed_forward"]["output"]["kernel"][3, 5] += 0.1
    save_pretrained(tmp_path / "converted", config, params)
    capsys.readouterr()
    assert main(["verify", str(folder), "--converted", str(tmp_path / "converted")]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "2 of 4 rows differ by more than 0.0001 of their largest entry; the first is layer 2 (last hid" in err
    verdicts = [line.split()[-1] for line in out.splitlines() if line.split()[-1:] in (["ok"], ["differs"])]
    assert verdicts == ["ok", "ok", "differs", "differs"]


def test_folder_converted_from_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = export(tmp_path / "exported", V3, []), V3.replace(vocab_size=60, layer_norm_eps=1e-5)
    save_pretrained(tmp_path / "converted", other, to_params(random_state(other), other))
    assert main(["verify", str(folder), "--converted", str(tmp_path / "converted")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("their configurations differ in vocab_size, layer_norm_eps\n")


@pytest.mark.torch
def test_changed_model_type_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers would fill parameters without weights with random numbers."""
    require_torch_and_transformers()
    folder = export(tmp_path, *CASES["v3-tokens"][:2])
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "deberta"}))
    assert main(["verify", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "transformers' DebertaForTokenClassification finds no fitting weights in" in err
    assert "attention.self.in_proj.weight (2 times)" in err


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_missing_packages_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "transformers":
        pytest.importorskip("torch", reason="torch is not installed, so verify does not get to import transformers")
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["verify", str(export(tmp_path, V3, []))]) == 1
    assert capsys.readouterr().err == (
        f"deberta-jax verify: verify runs transformers on PyTorch, and {name} is not installed; "
        "pip install torch transformers\n"
    )


def test_nan_does_not_agree() -> None:
    assert verify.Difference("x", 1.0, 1e-4).agrees
    assert not verify.Difference("x", 1.0, 1.1e-4).agrees
    assert not verify.Difference("x", float("nan"), float("nan")).agrees


def test_inputs_are_as_long_as_the_model_allows() -> None:
    inputs = verify.make_inputs(V3)
    assert inputs.input_ids.shape == inputs.attention_mask.shape == (4, 32)
    np.testing.assert_array_equal(inputs.attention_mask.sum(axis=1), [32, 32, 7, 1])
    assert inputs.attention_mask[2, 0] == 1  # padded on the right
    assert inputs.attention_mask[3, -1] == 1  # padded on the left
