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

from ..support.pytorch_files import MLM, RTD, V1, V2_CONV, V3, random_state, write_json, write_safetensors

BIASED = V3.replace(position_biased_input=True, type_vocab_size=2)
CASES = {
    "v1": (V1, [MLM], "masked LM logits"),
    "v1-classifier": (V1, ["pooler", "classifier"], "classification logits"),
    "v2-conv": (V2_CONV, ["pooler", "classifier"], "classification logits"),
    "v2-conv-mlm": (V2_CONV, [MLM], "masked LM logits"),
    "v3-discriminator": (V3, [MLM, RTD], "masked LM logits"),
    "v3-legacy": (V3.replace(mlm_head="legacy"), [MLM], "masked LM logits"),
    "v3-tokens": (V3, ["classifier"], "token classification logits"),
    "v3-spans": (V3, ["span_classifier"], "start and end logits"),
    "positions-in-the-input": (BIASED, [], None),
}


def both_installed() -> None:
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed; verify compares with transformers on PyTorch")


def state_of(config: DebertaConfig, heads: list[str]) -> dict[str, np.ndarray]:
    state = random_state(config, *heads)
    if not config.share_att_key:  # version 1 has no biases of keys
        state = {key: array * (not key.endswith("key_proj.bias")) for key, array in state.items()}
    return state


def write(folder: Path, config: DebertaConfig, heads: list[str]) -> Path:
    save_pytorch(folder, config, to_params(state_of(config, heads), config))
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_agrees(tmp_path, capsys, case):
    both_installed()
    config, heads, row = CASES[case]
    folder = write(tmp_path, config, heads)
    assert main(["verify", str(folder)]) == 0
    lines = [
        line.split("  ")[1].strip() for line in capsys.readouterr().out.splitlines() if line.split()[-1:] == ["ok"]
    ]
    assert lines == ["embeddings", "layer 1", "layer 2 (last hidden state)", *([row] if row else [])]


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["float64", "float16", "bin"])
def test_published_kinds_of_files_agree(tmp_path, capsys, kind):
    """Microsoft's names and configuration, numbers of other sizes, and a pickle."""
    both_installed()
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
@pytest.mark.parametrize("case", ["v1", "v2-conv", "v3-legacy"])
def test_a_converted_folder_that_was_tampered_with_fails(tmp_path, capsys, case):
    both_installed()
    folder = write(tmp_path / "theirs", *CASES[case][:2])
    config, params = load_pytorch(folder)
    save_pretrained(tmp_path / "ours", config, params)
    assert main(["verify", str(folder), "--converted", str(tmp_path / "ours")]) == 0
    params["deberta"]["encoder"]["layer_1"]["feed_forward"]["output"]["kernel"][3, 5] += 0.1
    save_pretrained(tmp_path / "ours", config, params)
    capsys.readouterr()
    assert main(["verify", str(folder), "--converted", str(tmp_path / "ours")]) == 1
    out, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert "2 of 4 rows differ by more than 0.0001 of their largest entry; the first is layer 2 (last hid" in error
    verdicts = [line.split()[-1] for line in out.splitlines() if line.split()[-1:] in (["ok"], ["differs"])]
    assert verdicts == ["ok", "ok", "differs", "differs"]


def test_a_folder_converted_from_another_model_is_refused(tmp_path, capsys):
    folder, other = write(tmp_path / "theirs", V3, []), V3.replace(vocab_size=60, layer_norm_eps=1e-5)
    save_pretrained(tmp_path / "ours", other, to_params(random_state(other), other))
    assert main(["verify", str(folder), "--converted", str(tmp_path / "ours")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("their configurations differ in vocab_size, layer_norm_eps\n")


@pytest.mark.torch
def test_a_configuration_that_was_tampered_with_fails(tmp_path, capsys):
    """transformers would fill what it does not find with random numbers."""
    both_installed()
    folder = write(tmp_path, *CASES["v3-tokens"][:2])
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "deberta"}))
    assert main(["verify", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "transformers' DebertaForTokenClassification finds nothing that fits in" in error
    assert "attention.self.in_proj.weight (2 times)" in error


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_both_packages_are_needed(tmp_path, capsys, monkeypatch, name):
    if name == "transformers":
        pytest.importorskip("torch", reason="torch is not installed; without it transformers is not asked for")
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["verify", str(write(tmp_path, V3, []))]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"deberta-jax verify: verify runs transformers on PyTorch, and {name} is not installed; "
        "pip install torch transformers\n"
    )


def test_not_a_number_does_not_agree():
    assert verify.Difference("x", 1.0, 1e-4).agrees
    assert not verify.Difference("x", 1.0, 1.1e-4).agrees
    assert not verify.Difference("x", float("nan"), float("nan")).agrees
