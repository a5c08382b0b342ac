"""Folders and hub repositories that are read: files, shards, and everything that can be wrong with them."""

import errno
import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.errors import XetDownloadError

from deberta_jax.convert import ConversionError, load_pytorch
from deberta_jax.convert.from_pytorch import find_folder
from deberta_jax.convert.mapping import to_params
from deberta_jax.errors import MissingFileError, MissingPackageError, UserError

from ..support.pytorch_files import (
    MLM,
    RTD,
    V3,
    assert_same,
    bin_bytes,
    published_state,
    random_state,
    write_json,
    write_safetensors,
)


@pytest.mark.parametrize("name", ["base", "v2-xxlarge", "v3-base", "v3-xsmall", "mdeberta", "generator"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_files_like_the_published_ones_load(tmp_path: Path, name: str, kind: str) -> None:
    config, state = published_state(name)
    filename = "pytorch_model.generator.bin" if name == "generator" else None
    write_json(tmp_path, config, "generator_config.json" if filename else "config.json")
    if kind == "bin" or filename:
        extra = {"config": {"hidden_size": 16}} if name == "base" else {}
        (tmp_path / (filename or "pytorch_model.bin")).write_bytes(bin_bytes(state, extra=extra))
    else:
        write_safetensors(tmp_path, config, state)
    loaded_config, params = load_pytorch(tmp_path, filename=filename)
    assert loaded_config == config
    assert_same(params, to_params(state, config))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert (RTD in params) == (name in ("v3-base", "v3-xsmall", "mdeberta"))


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    state = {key: array.astype(jnp.bfloat16) for key, array in random_state(V3).items()}
    write_safetensors(tmp_path / "a", V3, state)
    write_json(tmp_path / "b", V3)
    (tmp_path / "b" / "weights.bin").write_bytes(bin_bytes(state))
    for folder in (tmp_path / "a", tmp_path / "b"):
        params = load_pytorch(folder)[1]
        words = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
        np.testing.assert_array_equal(words, state["deberta.embeddings.word_embeddings.weight"].astype(np.float32))


def test_include_selects_parts(tmp_path: Path) -> None:
    write_safetensors(tmp_path, V3, random_state(V3, MLM, RTD))
    assert list(load_pytorch(tmp_path, include=["deberta", "mlm_head"])[1]) == ["deberta", "mlm_head"]
    with pytest.raises(ConversionError, match="no classifier in these weights; they have deberta, mlm_head, rtd_head"):
        load_pytorch(tmp_path, include=["classifier"])
    with pytest.raises(UserError, match="include has lm_head; the parts are deberta, mlm_head"):
        load_pytorch(tmp_path, include=["lm_head"])


def test_classifier_decides_num_labels(tmp_path: Path) -> None:
    write_safetensors(tmp_path, V3, random_state(V3, "pooler", "classifier", classes=5))
    assert load_pytorch(tmp_path)[0] == V3.replace(num_labels=5)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read_through_their_index(tmp_path: Path, kind: str) -> None:
    state = random_state(V3, MLM)
    names = {key: f"part-{i % 2}.{kind}" for i, key in enumerate(state)}
    write_json(tmp_path, V3)
    for name in set(names.values()):
        shard = {key: state[key] for key in state if names[key] == name}
        if kind == "bin":
            (tmp_path / name).write_bytes(bin_bytes(shard))
        else:
            write_safetensors(tmp_path, V3, shard, name)
    index = tmp_path / ("model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert_same(load_pytorch(tmp_path)[1], to_params(state, V3))

    index.write_text(json.dumps({"weight_map": {**names, "extra": f"part-0.{kind}"}}))
    with pytest.raises(ConversionError, match=r"does not contain the tensors that .*index.json lists: 'extra'"):
        load_pytorch(tmp_path)
    index.write_text(json.dumps({"weight_map": {"key": "../elsewhere.bin"}}))
    with pytest.raises(ConversionError, match=r"shards must be .* files in its folder"):
        load_pytorch(tmp_path)
    index.write_text(json.dumps({"weight_map": {"key": "gone.bin"}}))
    with pytest.raises(MissingFileError, match=r"names the shard gone.bin, which does not exist"):
        load_pytorch(tmp_path)
    for content in (b"[]", b"{", b"\xff", b"[" * 10**5):
        index.write_bytes(content)
        with pytest.raises(ConversionError, match="not an index of shards"):
            load_pytorch(tmp_path)


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFileError, match="pass one, or a hub name such as"):
        load_pytorch(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match=r"has no weights; it needs model.safetensors"):
        load_pytorch(tmp_path)
    path = write_safetensors(tmp_path, V3, random_state(V3), "a.safetensors")
    with pytest.raises(MissingFileError, match="is a file; pass its folder"):
        load_pytorch(path)
    load_pytorch(tmp_path)
    write_safetensors(tmp_path, V3, random_state(V3), "b.safetensors")
    with pytest.raises(MissingFileError, match=r"several weight files \(a.safetensors, b.safetensors\)"):
        load_pytorch(tmp_path)
    load_pytorch(tmp_path, filename="b.safetensors")
    with pytest.raises(MissingFileError, match=r"no file c.bin"):
        load_pytorch(tmp_path, filename="c.bin")
    (tmp_path / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"has no config.json or model_config.json, which a.safetensors needs"):
        load_pytorch(tmp_path, filename="a.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingFileError, match=r"install deberta-jax\[convert\]"):
        load_pytorch("someone/some-model")


def test_hub_download_prefers_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, downloads = random_state(V3), []

    def snapshot_download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        downloads.append((name, ignore_patterns, {"model*.safetensors*", "pytorch_model*.bin*"} & {*allow_patterns}))
        write_json(tmp_path, V3)
        if "pytorch_model*.bin*" in allow_patterns:
            (tmp_path / "pytorch_model.bin").write_bytes(bin_bytes(state))
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert_same(load_pytorch("some/model")[1], to_params(state, V3))
    patterns = ("model*.safetensors*", "pytorch_model*.bin*")
    assert downloads == [("some/model", ["*generator*"], {pattern}) for pattern in patterns]


@pytest.mark.parametrize(
    "error",
    [
        OSError("cannot be reached\nand a page of details"),
        ValueError("cannot be reached"),
        XetDownloadError("cannot be reached"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failed_hub_download_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(MissingFileError, match=r"^no folder a/b, and .* from the hub failed: cannot be reached$"):
        load_pytorch("a/b")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"", b'{"vocab_size": 3, "surprise": 1}'])
def test_invalid_configuration_is_one_line(tmp_path: Path, content: bytes) -> None:
    write_safetensors(tmp_path, V3, random_state(V3))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json") as error_info:
        load_pytorch(tmp_path)
    assert "\n" not in str(error_info.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_unreadable_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_json(tmp_path, V3)
    (tmp_path / name).write_bytes(b"{}")

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ConversionError, match=rf"{name} cannot be read: Permission denied; check its permissions"):
        load_pytorch(tmp_path)


def test_missing_safetensors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(tmp_path, V3, random_state(V3))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingPackageError, match=r"needs the package safetensors; install deberta-jax\[convert\]"):
        load_pytorch(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_mutated_files_are_refused_or_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    config, state = V3.replace(num_hidden_layers=1), random_state(V3.replace(num_hidden_layers=1))
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    write_json(tmp_path, config)
    path.write_bytes(bin_bytes(state))
    if kind == "safetensors":
        write_safetensors(tmp_path, config, state)
    whole = path.read_bytes()
    header_end = struct.unpack("<Q", whole[:8])[0] if kind == "safetensors" else whole.index(b"byteorder")
    rng, messages = np.random.default_rng(1), []
    for attempt in range(150):
        data = bytearray(whole)
        if attempt % 5 == 0:
            del data[rng.integers(len(data)) :]
        reach = min(header_end, len(data)) if attempt % 2 else len(data)
        for position in rng.integers(0, reach + 1, rng.integers(1, 4)):
            data[position : position + 1] = bytes([rng.integers(256)])
        path.unlink()
        path.write_bytes(data)
        try:
            loaded = load_pytorch(tmp_path)[1]
        except ConversionError as error:
            messages.append(str(error))
        else:
            assert jax.tree.map(np.shape, loaded) == jax.tree.map(np.shape, to_params(state, config))
    assert len(messages) > 50
    assert "\n" not in "".join(messages)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(MissingFileError, match="the model is empty; give a folder or the name of a hub repository"):
        find_folder("")
