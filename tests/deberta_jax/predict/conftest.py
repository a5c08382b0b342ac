"""One model in the three forms that are opened."""

from pathlib import Path

import pytest

from ...support.predictor import write_model_folders


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by name; see `write_model_folders`."""
    return write_model_folders(tmp_path_factory.mktemp("models"))
