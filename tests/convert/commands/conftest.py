"""One model in the three forms that the commands open."""

from pathlib import Path

import pytest

from deberta_jax import save_pretrained
from deberta_jax.convert import save_pytorch

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
