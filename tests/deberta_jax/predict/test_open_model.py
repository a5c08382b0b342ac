"""Folders of deberta-jax and of PyTorch that commands open."""

import shutil
from pathlib import Path

import pytest

from deberta_jax.errors import MissingFileError
from deberta_jax.predict.open_model import open_model

from ...support.predictor import head_params, random_predictor
from ...support.pytorch_files import assert_same


@pytest.mark.parametrize(
    ("name", "head"), [("pretrained", ""), ("generator", "mlm_head"), ("discriminator", "rtd_head")]
)
def test_models_are_opened_in_every_format(model_folders: dict[str, Path], name: str, head: str) -> None:
    model = random_predictor()
    opened = open_model(str(model_folders[name]))
    assert opened.config == model.config
    assert opened.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert_same(opened.params, head_params(model, head) if head else model.params)


def test_filename_selects_pytorch_weights(model_folders: dict[str, Path]) -> None:
    opened = open_model(str(model_folders["generator"]), filename="model.safetensors")
    assert_same(opened.params, head_params(random_predictor(), "mlm_head"))


def test_a_run_is_opened_by_its_folder(model_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(model_folders["pretrained"], tmp_path / "run" / "model")
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert_same(open_model(tmp_path / "run").params, random_predictor().params)
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    with pytest.raises(MissingFileError, match="unfinished has no finished model"):
        open_model(tmp_path / "unfinished")
