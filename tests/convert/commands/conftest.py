"""One model in the three forms that the commands open."""

from pathlib import Path

import numpy as np
import pytest

from deberta_jax import save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.predict.loaded_model import LoadedModel

from ...support.predictor import write_model_folders


@pytest.fixture(autouse=True)
def _keep_no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets `predict` leave JAX's settings as they are. JAX read the variable when it was imported; children read it."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled-by-children"))


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by name; see `write_model_folders`."""
    return write_model_folders(tmp_path_factory.mktemp("models"))


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
