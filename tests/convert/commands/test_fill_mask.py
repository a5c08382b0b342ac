"""`deberta-jax fill-mask` on the command line."""

from pathlib import Path

import numpy as np
import pytest

from deberta_jax import save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.predict.loaded_model import LoadedModel

from ...support.predictor import TEXT


def test_one_mask_is_shown_with_the_completed_text(
    model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fill-mask", str(model_folders["generator"]), "It was a [MASK] of them.", "--top-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in err
    assert len([line for line in out.splitlines() if "0." in line]) == 3
    assert out.splitlines()[-1].startswith("It was a")


def test_several_masks_are_numbered_and_discriminators_warn(
    model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fill-mask", str(model_folders["pretrained"]), TEXT]) == 0
    out, err = capsys.readouterr()
    assert "discriminator of replaced token detection" in err
    assert "mask 3 of 3" in out


def test_missing_head_is_one_line(model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill-mask", str(model_folders["discriminator"]), TEXT]) == 1
    err = capsys.readouterr().err
    assert "has no mlm_head; it has deberta, rtd_head" in err
    assert err.count("\n") == 1


def test_a_model_with_nan_is_an_error(
    model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LoadedModel.from_folder(model_folders["pretrained"])
    kernel = np.array(model.params["deberta"]["encoder"]["layer_1"]["feed_forward"]["output"]["kernel"])
    kernel[0, 0] = np.nan
    model.params["deberta"]["encoder"]["layer_1"]["feed_forward"]["output"]["kernel"] = kernel
    save_pretrained(tmp_path, model.config, model.params, tokenizer=model.tokenizer.files())
    assert main(["fill-mask", str(tmp_path), TEXT]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "NaN or infinite: deberta/encoder/layer_1/feed_forward/output/kernel; " in err.splitlines()[-1]
