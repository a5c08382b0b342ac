"""Hub names: what is downloaded, what is used offline, and one line for everything that can be wrong."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from deberta_jax.convert import load_pytorch
from deberta_jax.convert.from_pytorch import find_folder, find_tokenizer_folder
from deberta_jax.convert.mapping import to_params
from deberta_jax.errors import MissingFileError

from ..support.fake_hub import COMMIT, FakeHub, fake_hub, set_offline
from ..support.pytorch_files import V3, assert_same, bin_bytes, random_state, write_json, write_safetensors

STATE = random_state(V3)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "cache") as server:
        yield server


def repository(folder: Path, *files: str) -> Path:
    """Writes a configuration and empty files."""
    write_json(folder, V3)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_only_what_is_needed_is_downloaded(tmp_path: Path, hub: FakeHub) -> None:
    hub.folders["org/model"] = source = repository(
        tmp_path / "repository", "tokenizer.json", "spm.model", "tf_model.h5", "README.md", "pytorch_model.bin"
    )
    write_safetensors(source, V3, STATE)
    assert_same(load_pytorch("org/model")[1], to_params(STATE, V3))
    folder = find_folder("org/model")
    assert folder.name == COMMIT
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "spm.model",
    }


def test_a_tokenizer_is_downloaded_without_weights(tmp_path: Path, hub: FakeHub) -> None:
    hub.folders["org/model"] = repository(tmp_path / "repository", "spm.model", "model.safetensors")
    assert {path.name for path in find_tokenizer_folder("org/model").iterdir()} == {"config.json", "spm.model"}
    assert find_tokenizer_folder(tmp_path) == tmp_path


def test_revisions(tmp_path: Path, hub: FakeHub) -> None:
    for revision, key in {"main": "org/model", "v1": "org/model@v1"}.items():
        hub.folders[key] = tmp_path / revision
        write_safetensors(tmp_path / revision, V3.replace(layer_norm_eps=1e-3 if revision == "v1" else 1e-7), STATE)
    assert load_pytorch("org/model")[0].layer_norm_eps == 1e-7
    for revision in ("v1", hub.commit("org/model@v1")):
        assert load_pytorch(f"org/model@{revision}")[0].layer_norm_eps == 1e-3
    with pytest.raises(
        MissingFileError, match=r"^no folder org/model@v2, and org/model on the hub has no revision v2;"
    ):
        load_pytorch("org/model@v2")


def test_a_released_size_is_microsofts(tmp_path: Path, hub: FakeHub) -> None:
    hub.folders["microsoft/deberta-v3-small"] = tmp_path / "repository"
    write_safetensors(tmp_path / "repository", V3, STATE)
    assert load_pytorch("deberta-v3-small")[0] == V3


def test_a_folder_wins_over_the_hub(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    write_safetensors(Path("org/model"), V3, STATE)
    assert find_folder("org/model") == Path("org/model")
    assert not hub.requests


def test_offline_uses_the_copy(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.folders["org/model"] = tmp_path / "repository"
    write_safetensors(tmp_path / "repository", V3, STATE)
    folder = find_folder("org/model")
    hub.down = True
    assert find_folder("org/model") == folder
    hub.requests.clear()
    set_offline(monkeypatch, True)
    assert find_folder("org/model") == folder
    assert not hub.requests


def test_offline_uses_what_transformers_downloaded(tmp_path: Path, hub: FakeHub) -> None:
    hub.folders["org/model"] = repository(tmp_path / "repository", "tokenizer_config.json", "spm.model")
    write_safetensors(tmp_path / "repository", V3, STATE)
    huggingface_hub.snapshot_download("org/model", allow_patterns=["config.json", "model.safetensors"])
    hub.down = True
    assert load_pytorch("org/model")[0] == V3


def test_offline_names_an_incomplete_copy(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.folders["org/model"] = tmp_path / "repository"
    write_safetensors(tmp_path / "repository", V3, STATE)
    huggingface_hub.snapshot_download("org/model", allow_patterns=["config.json"])
    set_offline(monkeypatch, True)
    with pytest.raises(MissingFileError, match=r"the copy of org/model in .* has no PyTorch weights .* go online"):
        find_folder("org/model")


def test_offline_without_a_copy(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.down = True
    advice = r"run `hf download runs/base --local-dir FOLDER` on another machine and give FOLDER$"
    with pytest.raises(
        MissingFileError, match=rf"^no folder runs/base, and .* cannot be reached: .*503.*{advice}"
    ) as info:
        find_folder("runs/base")
    assert "\n" not in str(info.value)
    set_offline(monkeypatch, True)
    with pytest.raises(MissingFileError, match=rf"\(HF_HUB_OFFLINE is set\); go online, or {advice}"):
        find_folder("runs/base")
    set_offline(monkeypatch, False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(MissingFileError, match=r"http://127.0.0.1:9 cannot be reached: Connect(ion)?Error"):
        find_folder("runs/base")


def test_repositories_that_may_not_be_read(hub: FakeHub) -> None:
    hub.gated.add("org/gated")
    with pytest.raises(
        MissingFileError, match=r"^no folder org/gated, and org/gated on the hub is gated: accept .*HF_TOKEN"
    ):
        find_folder("org/gated")
    with pytest.raises(
        MissingFileError, match=r"^no folder org/none, and the hub has no repository org/none that you may"
    ):
        find_folder("org/none")


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./a", "a b/c", "a/b@", "-x/y z"])
def test_what_is_no_name(hub: FakeHub, name: str) -> None:
    with pytest.raises(MissingFileError, match=r"^no folder .*; pass one, or a hub name such as"):
        find_folder(name)
    assert not hub.requests


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["tf_model.h5"], r"has no PyTorch weights .*, but tf_model.h5 \(TensorFlow\)$"),
        (["flax_model.msgpack", "rust_model.ot"], r"msgpack \(Flax of transformers\), rust_model.ot \(Rust\)$"),
        (["onnx/model.onnx"], r"but onnx/model.onnx \(ONNX\)$"),
        (["model.Q4.gguf"], r"but model.Q4.gguf \(llama.cpp\)$"),
        (["checkpoint-100/model.safetensors"], r"some in checkpoint-100; run `hf download .* and give that subfolder"),
        (["README.md"], r"has no PyTorch weights .*, but README.md, config.json$"),
    ],
)  # fmt: skip
def test_repositories_without_weights(tmp_path: Path, hub: FakeHub, files: list[str], message: str) -> None:
    hub.folders["org/model"] = repository(tmp_path / "repository", *files)
    with pytest.raises(MissingFileError, match=message):
        load_pytorch("org/model")


def test_several_weight_files_are_named(tmp_path: Path, hub: FakeHub) -> None:
    hub.folders["org/model"] = repository(tmp_path / "repository", "a.safetensors", "b.safetensors")
    with pytest.raises(MissingFileError, match=r"has several weight files \(a.safetensors, b.safetensors\); name one"):
        load_pytorch("org/model")
    write_safetensors(tmp_path / "repository", V3, STATE, "c.safetensors")
    hub.folders["org/other"] = tmp_path / "repository"
    assert load_pytorch("org/other", filename="c.safetensors")[0] == V3


@pytest.mark.parametrize("local", [False, True])
def test_early_sentence_transformers(tmp_path: Path, hub: FakeHub, local: bool) -> None:
    source = tmp_path / "repository"
    (source / "1_Pooling").mkdir(parents=True)
    (source / "modules.json").write_text("[]")
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16}))
    write_json(source / "0_Transformer", V3)
    (source / "0_Transformer" / "pytorch_model.bin").write_bytes(bin_bytes(STATE))
    hub.folders["org/model"] = source
    config, params = load_pytorch(source if local else "org/model")
    assert config == V3
    assert_same(params, to_params(STATE, V3))


def test_training_files_beside_the_weights_are_no_weights(tmp_path: Path) -> None:
    write_json(tmp_path, V3)
    (tmp_path / "last.ckpt").write_bytes(bin_bytes(STATE))
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt"):
        (tmp_path / name).write_bytes(b"")
    assert load_pytorch(tmp_path)[0] == V3
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(MissingFileError, match=r"has no weights; .*It holds: config.json, optimizer.pt"):
        load_pytorch(tmp_path)


def test_a_folder_says_where_its_models_are(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "generator", V3, STATE)
    with pytest.raises(MissingFileError, match=r"Models are in .*generator; give it"):
        load_pytorch(tmp_path)
    shutil.rmtree(tmp_path / "generator")
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(MissingFileError, match=r"It has only tf_model.h5 \(TensorFlow\)$"):
        load_pytorch(tmp_path)
