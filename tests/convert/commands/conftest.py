"""One model in the three forms that the commands open."""

from pathlib import Path

import numpy as np
import pytest

from deberta_jax import save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.convert import save_pytorch
from deberta_jax.predict.loaded_model import LoadedModel

from ...support.predictor import head_params, random_predictor


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by name: the model in our format, and the generator and the discriminator as PyTorch files."""
    model, home = random_predictor(), tmp_path_factory.mktemp("models")
    save_pretrained(home / "pretrained", model.config, model.params)
    save_pytorch(home / "generator", model.config, head_params(model, "mlm_head"))
    save_pytorch(home / "discriminator", model.config, head_params(model, "rtd_head"))
    for folder in home.iterdir():
        model.tokenizer.save(folder)
    return {folder.name: folder for folder in home.iterdir()}


@pytest.fixture(scope="session")
def model_with_nan(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of which one kernel has a NaN."""
    model, folder = LoadedModel.from_folder(model_folders["pretrained"]), tmp_path_factory.mktemp("nan")
    output = model.params["deberta"]["encoder"]["layer_1"]["feed_forward"]["output"]
    output["kernel"] = np.array(output["kernel"])
    output["kernel"][0, 0] = np.nan
    save_pretrained(folder, model.config, model.params, tokenizer=model.tokenizer.files())
    return folder


def assert_nan_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a command on `model_with_nan`: it must fail, print no result and name the kernel."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "NaN or infinite: deberta/encoder/layer_1/feed_forward/output/kernel; " in err.splitlines()[-1]
