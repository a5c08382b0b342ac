"""The cache of converted models: one entry for the same files, a new one for others, and concurrent writers."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from deberta_jax import load_pretrained, save_pretrained
from deberta_jax.convert import ConversionError, cache
from deberta_jax.convert.mapping import to_params
from deberta_jax.errors import MissingFileError, UserError

from ..support.fake_hub import COMMIT, fake_hub
from ..support.pytorch_files import V3, assert_same, bin_bytes, random_state, write_json, write_safetensors

STATE = random_state(V3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_our_own_folder_is_returned(tmp_path: Path, folder: Path) -> None:
    save_pretrained(tmp_path / "ours", V3, to_params(STATE, V3))
    assert cache.local_model(tmp_path / "ours") == tmp_path / "ours"
    assert not folder.exists()


def test_pytorch_files_are_converted_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_safetensors(tmp_path / "model", V3, STATE)
    (tmp_path / "model" / "spm.model").write_bytes(b"pieces")
    entry = cache.local_model(tmp_path / "model")
    assert entry.parent == folder
    assert f"converted {tmp_path / 'model'}; kept in {entry}" in capsys.readouterr().err
    config, params = load_pretrained(entry)
    assert config == V3
    assert_same(jax.device_get(params), to_params(STATE, V3))
    assert (entry / "spm.model").read_bytes() == b"pieces"
    with monkeypatch.context() as patch:
        patch.setattr(cache, "load_pytorch", None)
        os.utime(tmp_path / "model" / "model.safetensors", (1, 1))  # the content counts
        assert cache.local_model(tmp_path / "model") == entry
    (tmp_path / "model" / "spm.model").write_bytes(b"others")
    assert cache.local_model(tmp_path / "model") != entry
    monkeypatch.setattr(cache, "CONVERTER", cache.CONVERTER + 1)
    (tmp_path / "model" / "spm.model").write_bytes(b"pieces")
    assert cache.local_model(tmp_path / "model") != entry
    assert not list(folder.glob(".*")), "no partial entry is left"


def test_a_hub_name_is_cached_by_its_commit(tmp_path: Path) -> None:
    with fake_hub(tmp_path / "hub") as hub:
        hub.folders["org/model"] = tmp_path / "repository"
        write_safetensors(tmp_path / "repository", V3, STATE)
        entry = cache.local_model("org/model")
        assert entry.name.startswith("org--model-")
        assert entry == cache.local_model(f"org/model@{COMMIT}").with_name(entry.name)
        hub.down = True
        assert cache.local_model("org/model") == entry
        with pytest.raises(MissingFileError, match=r"^no folder org/other, and org/other has not been downloaded to"):
            cache.local_model("org/other")


def test_concurrent_conversions_give_one_entry(tmp_path: Path, folder: Path) -> None:
    write_safetensors(tmp_path / "model", V3, STATE)
    with ThreadPoolExecutor(3) as pool:
        entries = list(pool.map(cache.local_model, [tmp_path / "model"] * 3))
    assert len(set(entries)) == 1
    assert [path.name for path in folder.iterdir()] == [entries[0].name]
    load_pretrained(entries[0])


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    write_json(tmp_path / "model", V3)
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(bin_bytes(STATE)[:-100])
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin"):
        cache.local_model(tmp_path / "model")
    assert not list(folder.iterdir())


def test_each_process_of_a_run_converts_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(tmp_path / "model", V3, STATE)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    entry = cache.local_model(tmp_path / "model")
    monkeypatch.undo()
    assert_same(jax.device_get(load_pretrained(entry)[1]), to_params(STATE, V3))


def test_an_error_of_a_conversion_apart_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_json(tmp_path / "model", V3)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    assert cache.main([str(tmp_path / "model" / "model.safetensors"), str(tmp_path / "out")]) == 1
    assert "is damaged or not a safetensors file" in capsys.readouterr().err.splitlines()[-1]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DEBERTA_JAX_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache.cache_folder() == Path("~/.cache/huggingface/deberta-jax").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_folder() == Path("/xdg/huggingface/deberta-jax")
    monkeypatch.setenv("HF_HOME", "/hf")
    assert cache.cache_folder() == Path("/hf/deberta-jax")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "file" / "cache"))
    write_safetensors(tmp_path / "model", V3, STATE)
    with pytest.raises(UserError, match=r"cannot be written: Not a directory; set DEBERTA_JAX_CACHE to another folder"):
        cache.local_model(tmp_path / "model")
