"""`deberta-jax fill-mask` on the command line."""

from pathlib import Path

import pytest

from deberta_jax.__main__ import main

from ...support.predictor import TEXT
from .conftest import assert_nan_is_named


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
    assert "has no mlm_head; it has deberta (the encoder), rtd_head" in err
    assert err.count("\n") == 1


def test_a_model_with_nan_is_an_error(model_with_nan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_nan_is_named(["fill-mask", str(model_with_nan), TEXT], capsys)
