"""Models and tokenizers in a store: saved, loaded, converted, and by every command that takes a path."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from deberta_jax import DebertaConfig, Tokenizer, load_pretrained, save_pretrained, stores
from deberta_jax.__main__ import main as command_line
from deberta_jax.convert import load_pytorch, save_pytorch
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.mirrors import local_path


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where a local folder called `memory:` would be
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    stores.remove_folder(address)
    assert not (tmp_path / "memory:").exists()


def _other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "other"))


def _assert_equal(first, second) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_model_is_saved_loaded_and_converted(
    bucket: str, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, params = load_pretrained(small_model)
    tokenizer = Tokenizer.from_folder(small_model)
    save_pretrained(f"{bucket}/model", config, params, tokenizer=tokenizer.files())
    save_pytorch(f"{bucket}/torch", config, params)
    tokenizer.save(f"{bucket}/tokenizer")
    _other_machine(monkeypatch, tmp_path)
    loaded, again = load_pretrained(f"{bucket}/model")
    assert loaded == config
    _assert_equal(again, params)
    assert DebertaConfig.from_json(f"{bucket}/model") == config
    _assert_equal(load_pytorch(f"{bucket}/torch")[1], params)
    for folder in ("model", "tokenizer"):
        assert Tokenizer.from_folder(f"{bucket}/{folder}").fingerprint == tokenizer.fingerprint


def test_a_model_replaces_another_one_and_leaves_none_of_its_files(bucket: str, small_model: Path):
    config, params = load_pretrained(small_model)
    for _ in range(2):
        save_pretrained(f"{bucket}/model", config, params)
        local = local_path(f"{bucket}/model")
        files = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
        assert stores.entries(f"{bucket}/model").keys() == files
    stores.remove(f"{bucket}/model/config.json")  # as if it were not written yet
    with pytest.raises(MissingFileError, match=r"needs config.json and params/"):
        load_pretrained(f"{bucket}/model")


def test_a_model_of_which_one_part_is_new_is_damaged(bucket: str, small_model: Path):
    config, params = load_pretrained(small_model)
    save_pretrained(f"{bucket}/model", config, params)
    save_pretrained(f"{bucket}/new", config, jax.tree.map(lambda leaf: leaf + 1, params))
    for name in stores.entries(f"{bucket}/new"):
        if name.startswith("params/"):
            stores.copy(f"{bucket}/new/{name}", f"{bucket}/model/{name}")
    with pytest.raises(UserError, match=rf"the parameters in {bucket}/model/params are damaged or incomplete"):
        load_pretrained(f"{bucket}/model")


def test_commands_take_addresses(
    bucket: str, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    config, params = load_pretrained(small_model)
    save_pretrained(f"{bucket}/model", config, params, tokenizer=Tokenizer.from_folder(small_model).files())
    assert command_line(["export", f"{bucket}/model", f"{bucket}/torch"]) == 0
    assert f"{bucket}/torch" in capsys.readouterr().out
    _other_machine(monkeypatch, tmp_path)
    assert command_line(["convert", f"{bucket}/torch", f"{bucket}/again"]) == 0
    _assert_equal(load_pretrained(f"{bucket}/again")[1], params)
    assert command_line(["convert", f"{bucket}/torch", f"{bucket}/torch"]) == 1
    assert f"the destination {bucket}/torch is the source {bucket}/torch" in capsys.readouterr().err
    assert command_line(["convert", f"{bucket}/none", f"{bucket}/out"]) == 1
    assert f"{bucket}/none: no such file or folder" in capsys.readouterr().err
    assert not stores.exists(f"{bucket}/out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "--output", "other://b/p", "--tokenizer", "t"], "other:// is an unknown protocol"),
        (["tokenizer", "--output", "memory://", "--text", "a.txt"], "memory:// names no file or folder"),
        (
            ["finetune", "--output", "o", "--model", "m", "--train", "a", "--compilation-cache", "memory://b/c"],
            "--compilation-cache memory://b/c: this has to be a local folder",
        ),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    with pytest.raises(SystemExit) if message.startswith("other") else pytest.MonkeyPatch.context():
        assert command_line(words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
