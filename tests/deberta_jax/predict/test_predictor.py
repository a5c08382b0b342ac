"""The class that opens a model and has all its uses."""

import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax import Predictor
from deberta_jax.errors import MissingFileError

from ...support.predictor import TEXT, random_predictor
from ...support.pytorch_files import assert_same


@pytest.mark.parametrize("name", ["pretrained", "generator"])
def test_a_folder_is_loaded_and_used(model_folders: dict[str, Path], name: str) -> None:
    loaded = Predictor.load(str(model_folders[name]), batch_size=3)
    assert loaded.batch_size == 3
    assert_same(loaded.params["mlm_head"], random_predictor().params["mlm_head"])
    assert loaded.fill_mask([TEXT]) == random_predictor().fill_mask([TEXT])


def test_the_tokenizer_may_be_elsewhere(model_folders: dict[str, Path], tmp_path: Path) -> None:
    model = random_predictor()
    other = tmp_path / "model"
    from deberta_jax import save_pretrained

    save_pretrained(other, model.config, model.params)
    for tokenizer in (model.tokenizer, model_folders["pretrained"]):
        assert Predictor.load(str(other), tokenizer=tokenizer).tokenizer.fingerprint == model.tokenizer.fingerprint
    with pytest.raises(MissingFileError, match=r"has no spm\.model"):
        Predictor.load(str(other))


def test_importing_the_name_is_cheap() -> None:
    program = "import sys, deberta_jax.predict; assert 'jax' not in sys.modules; from deberta_jax import Predictor"
    subprocess.run([sys.executable, "-c", program], check=True)
