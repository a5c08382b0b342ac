"""What convert and export refuse before they write: their source, caches, models in other formats, values like NaN."""

import os
from pathlib import Path

import numpy as np
import pytest

from deberta_jax import UserError, load_pretrained, save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.convert import load_pytorch, verify
from deberta_jax.convert.mapping import to_params

from ..support.pytorch_files import MLM, V3, random_state, write_safetensors
from ..support.small_disk import mounted


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the PyTorch model `torch`, the same model `ours`, and links to both; it is the current folder."""
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    state = random_state(V3, MLM)
    write_safetensors(tmp_path / "torch", V3, state)
    save_pretrained(tmp_path / "ours", V3, to_params(state, V3))
    (tmp_path / "link").symlink_to("torch")
    (tmp_path / "our-link").symlink_to("ours")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "source", "destination", "reason"),
    [
        ("convert", "torch", "torch", "is the source"),
        ("convert", "torch", "./torch/", "is the source"),
        ("convert", "torch", "ours/../torch", "is the source"),
        ("convert", "link", "torch", "is the source"),
        ("convert", "torch", "link", "is the source"),
        ("convert", "torch", "torch/jax", "is inside the source"),
        ("convert", "link", "torch/jax", "is inside the source"),
        ("convert", "torch", "cache/mine", "is in the cache"),
        ("convert", "torch", "hf/hub/models--org--name/snapshots/1", "is in the cache"),
        ("export", "ours", "ours", "is the source"),
        ("export", "our-link", "ours/", "is the source"),
        ("export", "ours", "ours/torch", "is inside the source"),
        ("export", "torch", "link", "is the source"),
        ("export", "torch", "ours", "holds params, a model in another format"),
        ("convert", "torch", "other", "holds model.safetensors, a model in another format"),
    ],
)
def test_a_destination_that_others_read_is_refused_before_anything_is_written(
    folders: Path, capsys: pytest.CaptureFixture[str], command: str, source: str, destination: str, reason: str
) -> None:
    (folders / "other").mkdir()
    (folders / "other" / "model.safetensors").touch()
    before = snapshot(folders)
    assert main([command, source, destination]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert f"the destination {Path(destination)} {reason}" in error[0]
    assert "give another folder" in error[0]
    assert snapshot(folders) == before


def test_commands_may_run_again_and_write_beside(folders: Path) -> None:
    for _ in range(2):
        assert main(["convert", "torch", "torch-jax"]) == 0
        assert main(["export", "torch-jax", "again[1]"]) == 0
    assert load_pretrained("torch-jax")[0] == load_pytorch("again[1]")[0]


def test_links_at_the_destination_are_replaced_and_not_followed(folders: Path) -> None:
    for name in ("spm.model", "tokenizer_config.json"):
        (folders / "ours" / name).write_bytes(b"{}")
    (folders / "hf").mkdir()
    precious = folders / "hf" / "blob"
    precious.write_bytes(b"precious")
    (folders / "target").mkdir()
    for name in ("spm.model", "tokenizer_config.json", "config.json", "model.safetensors"):
        (folders / "target" / name).symlink_to(precious)
    assert main(["export", "ours", "target"]) == 0
    assert precious.read_bytes() == b"precious"
    assert (folders / "target" / "spm.model").read_bytes() == b"{}"
    assert not any(path.is_symlink() for path in (folders / "target").iterdir())
    load_pytorch(folders / "target")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(
    folders: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    config, params = load_pretrained("ours")
    bias = np.array(params["deberta"]["embeddings"]["layer_norm"]["bias"])
    bias[3] = value
    params["deberta"]["embeddings"]["layer_norm"]["bias"] = bias
    save_pretrained("bad", config, params)
    state = random_state(V3, MLM)
    state["deberta.embeddings.LayerNorm.bias"] = bias
    write_safetensors(folders / "bad-torch", V3, state)
    for arguments in (["export", "bad", "out"], ["convert", "bad-torch", "out"]):
        assert main(arguments) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "1 of " in error
        assert "have values that are NaN or infinite: deberta/embeddings/layer_norm/bias; " in error
        assert not os.path.lexists("out")
    with pytest.raises(UserError, match=r"layer_norm/bias; the training has diverged"):
        verify.main(verify.VerifyConfig(source="bad-torch"))


@pytest.mark.parametrize("command", [["convert", "torch"], ["export", "ours"]], ids=["convert", "export"])
def test_a_full_disk_leaves_the_old_files(
    folders: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    size = (folders / "torch" / "model.safetensors").stat().st_size
    with mounted(folders / "disk", megabytes=1):
        assert main([*command, "disk/model"]) == 0
        disk = os.statvfs(folders / "disk")
        (folders / "disk" / "others").write_bytes(bytes(disk.f_bavail * disk.f_frsize - size // 2))
        before = snapshot(folders / "disk")
        capsys.readouterr()
        assert main([*command, "disk/model"]) == 1
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert "No space left on device" in error[0]
        assert snapshot(folders / "disk") == before
