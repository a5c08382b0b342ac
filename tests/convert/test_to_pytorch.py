"""Models written as PyTorch files, and read back by this library and by transformers."""

import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError

from deberta_jax.config import DebertaConfig
from deberta_jax.convert import ConversionError, from_pytorch, load_pytorch, save_pytorch, to_pytorch
from deberta_jax.convert.mapping import to_params
from deberta_jax.errors import MissingPackageError, UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..support.pytorch_files import (
    MLM,
    RTD,
    UNUSUAL,
    V1,
    V2_CONV,
    V3,
    assert_same,
    published_state,
    random_state,
    write_safetensors,
)
from ..support.tokenizer_texts import DEBERTA_PIECES, custom_model

# Name of the configuration, heads, suffix of transformers' class.
TRANSFORMERS_CASES = [
    ("v2", [], "Model"),
    ("v3", [], "Model"),
    ("unusual", [], "Model"),
    ("bert", [], "Model"),
    ("v1", [], "Model"),
    ("v1-bias", [], "Model"),
    ("v3", [MLM, RTD], "ForMaskedLM"),
    ("v1", [MLM], "ForMaskedLM"),
    ("unusual", [MLM], "ForMaskedLM"),
    ("v3", ["pooler", "classifier"], "ForSequenceClassification"),
    ("v1", ["pooler", "classifier"], "ForSequenceClassification"),
    ("v3", ["classifier"], "ForTokenClassification"),
    ("v3", ["span_classifier"], "ForQuestionAnswering"),
    ("v3", ["pooler", "classifier"], "ForMultipleChoice"),
]


@pytest.mark.parametrize("config", [V1, V2_CONV, V3, UNUSUAL], ids=["v1", "v2", "v3", "unusual"])
@pytest.mark.parametrize("heads", [[], [MLM, RTD], ["pooler", "classifier"], ["span_classifier"]], ids="-".join)
def test_save_and_load_round_trip_exactly(tmp_path: Path, config: DebertaConfig, heads: list[str]) -> None:
    config = config.replace(num_labels=3 if "classifier" in heads else 2)
    params = to_params(random_state(config, *heads), config)
    save_pytorch(tmp_path / "new" / "folder", config, jax.tree.map(jnp.asarray, params))
    loaded_config, loaded = load_pytorch(tmp_path / "new" / "folder")
    assert loaded_config == config
    assert_same(loaded, params)
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    assert files[0].stat().st_mode == files[1].stat().st_mode


def test_version_1_layout_requires_zero_key_biases(tmp_path: Path) -> None:
    config, state = published_state("base")
    params = to_params(state, config)
    save_pytorch(tmp_path / "v1", config, params)
    assert_same(load_pytorch(tmp_path / "v1")[1], params)
    fields = json.loads((tmp_path / "v1" / "config.json").read_text())
    assert (fields["model_type"], fields["architectures"]) == ("deberta", ["DebertaForMaskedLM"])
    from safetensors.numpy import load_file

    assert_same(load_file(tmp_path / "v1" / "model.safetensors"), state)
    params["deberta"]["encoder"]["layer_1"]["attention"]["key_proj"]["bias"][3] = 1e-9
    save_pytorch(tmp_path / "v2", config, params)
    assert json.loads((tmp_path / "v2" / "config.json").read_text())["model_type"] == "deberta-v2"
    assert_same(load_pytorch(tmp_path / "v2")[1], params)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_written(tmp_path: Path, dtype: Any) -> None:
    params = to_params(random_state(V3), V3)
    save_pytorch(tmp_path, V3, params, dtype=dtype)
    loaded = load_pytorch(tmp_path)[1]
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == np.dtype(dtype).name
    header = (tmp_path / "model.safetensors").read_bytes()
    assert header.count(b"BF16" if dtype is jnp.bfloat16 else b'"F16') == len(jax.tree.leaves(params))


def test_models_that_transformers_cannot_hold_are_refused(tmp_path: Path) -> None:
    params = to_params(random_state(V3, "token_proj", "classifier"), V3)
    with pytest.raises(ConversionError, match="no layer for token_proj"):
        save_pytorch(tmp_path, V3, params)
    params = to_params(random_state(V3), V3)
    words = params["deberta"]["embeddings"]["word_embeddings"]
    params["deberta"]["embeddings"]["word_embeddings"] = {"delta": words["embedding"]}
    with pytest.raises(ConversionError, match=r"contains only differences .delta.*standalone_discriminator"):
        save_pytorch(tmp_path, V3, params)
    params["deberta"]["embeddings"]["word_embeddings"] = words
    wide = V3.replace(attention_head_size=4)
    with pytest.raises(ConversionError, match="attention_head_size 4 to equal hidden_size 16"):
        save_pytorch(tmp_path, wide, to_params(random_state(wide), wide))
    with pytest.raises(UserError, match="dtype is int8; it must be one of float32, float16, bfloat16"):
        save_pytorch(tmp_path, V3, params, dtype=np.int8)
    params["deberta"]["embeddings"]["layer_norm"]["bias"][0] = 1e6
    with pytest.raises(ConversionError, match=r"LayerNorm.bias has values that float16 cannot represent"):
        save_pytorch(tmp_path, V3, params, dtype=np.float16)
    assert os.listdir(tmp_path) == []


def test_failed_save_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = to_params(random_state(V3), V3)
    save_pytorch(tmp_path, V3, params)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="no space"):
        save_pytorch(tmp_path, V3, jax.tree.map(np.zeros_like, params))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_convert_and_export_commands_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = random_state(V3, MLM)
    write_safetensors(tmp_path / "source", V3, state)
    spm = custom_model(**DEBERTA_PIECES)
    (tmp_path / "source" / "spm.model").write_bytes(spm)
    (tmp_path / "source" / "added_tokens.json").write_text('{"[MASK]": 300, "[E1]": 301}')
    from_pytorch.main(from_pytorch.ConvertConfig(source=str(tmp_path / "source"), destination=tmp_path / "converted"))
    to_pytorch.main(to_pytorch.ExportConfig(source=tmp_path / "converted", destination=tmp_path / "exported"))
    assert "parameters (deberta, mlm_head)" in capsys.readouterr().out
    for name in ("converted", "exported"):
        assert (tmp_path / name / "spm.model").read_bytes() == spm
        assert Tokenizer.from_folder(tmp_path / name).encode("[E1]") == [301]
    assert_same(load_pytorch(tmp_path / "exported")[1], to_params(state, V3))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no spm\.model or .* or tokenizer\.json"),
        ({"spm.model": "pieces"}, "is not a SentencePiece model"),
        (
            {"vocab.txt": "[PAD]", "tokenizer_config.json": '{"tokenizer_class": "BertJapaneseTokenizer"}'},
            "BertJapanese",
        ),
        ({"tokenizer.json": "{}"}, "is damaged or not a tokenizer"),
    ],
)
def test_convert_says_at_once_that_it_cannot_read_the_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], message: str
) -> None:
    write_safetensors(tmp_path / "source", V3, random_state(V3))
    for name, content in files.items():
        (tmp_path / "source" / name).write_text(content)
    from_pytorch.main(from_pytorch.ConvertConfig(source=str(tmp_path / "source"), destination=tmp_path / "converted"))
    first, *_ = capsys.readouterr().out.splitlines()
    assert re.search(f"only the weights are converted, without a tokenizer: .*{message}", first)
    assert "deberta-jax tokenizer" not in first
    assert not {*files} & {path.name for path in (tmp_path / "converted").iterdir()}


def test_missing_safetensors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(MissingPackageError, match=r"needs the package safetensors; install deberta-jax\[convert\]"):
        save_pytorch(tmp_path, V3, to_params(random_state(V3), V3))


def test_a_full_disk_has_its_error_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="was not written: I/O error: No space left on device") as raised:
        to_pytorch.write_tensors(tmp_path / "tensors", {}, where=tmp_path)
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.torch
@pytest.mark.parametrize(("name", "heads", "suffix"), TRANSFORMERS_CASES)
def test_transformers_loads_every_exported_weight(tmp_path: Path, name: str, heads: list[str], suffix: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it loads these exports")
    bert = V3.replace(relative_attention=False, pos_att_type=(), position_buckets=-1, position_biased_input=True)
    config = {"v1": V1, "v1-bias": V1, "v2": V2_CONV, "v3": V3, "unusual": UNUSUAL, "bert": bert}[name]
    config = config.replace(num_labels=1 if suffix == "ForMultipleChoice" else 2)
    state = random_state(config, *heads, classes=config.num_labels)
    if name == "v1":
        state = {key: array * (not key.endswith("key_proj.bias")) for key, array in state.items()}
    params = to_params(state, config)
    if name == "bert":
        del params["deberta"]["encoder"]["layer_norm"]
        config = config.replace(norm_rel_ebd="none")
    save_pytorch(tmp_path / "converted", config, params)

    torch_class = getattr(transformers, ("Deberta" if name == "v1" else "DebertaV2") + suffix)
    model, info = torch_class.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype.itemsize == 4
    fields = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert fields.get("architectures") == (None if suffix == "ForMultipleChoice" else [torch_class.__name__])

    model.save_pretrained(tmp_path / "exported")
    config_back, params_back = load_pytorch(tmp_path / "exported")
    if not config.position_biased_input:
        # transformers drops the position table, and without it the enhanced mask decoder cannot run.
        del params["deberta"]["embeddings"]["position_embeddings"]
        config = config.replace(mlm_head="bert") if MLM in heads else config
    params.pop(RTD, None)
    assert_same(params_back, params)
    assert config_back == config


@pytest.mark.torch
def test_legacy_and_bert_masked_lm_heads_agree_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it runs both heads")
    torch = pytest.importorskip("torch", reason="torch is not installed; it runs both heads")
    fields = {**V3.to_json(), "model_type": "deberta-v2", "initializer_range": 0.3}
    legacy = transformers.DebertaV2ForMaskedLM(transformers.DebertaV2Config(**fields, legacy=True)).eval()
    legacy.save_pretrained(tmp_path / "legacy")
    config, params = load_pytorch(tmp_path / "legacy")
    assert config.mlm_head == "legacy"
    ids = torch.arange(1, 21).reshape(2, 10)
    for form in ("legacy", "bert"):
        save_pytorch(tmp_path / form, config.replace(mlm_head=form), params)
        assert load_pytorch(tmp_path / form)[0].mlm_head == form
        model, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / form, output_loading_info=True)
        assert not any(info.values()), info
        assert model.config.legacy == (form == "legacy")
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(ids).logits, legacy(ids).logits)
