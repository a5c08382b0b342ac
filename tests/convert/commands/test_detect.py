"""`deberta-jax detect` on the command line."""

from pathlib import Path

import pytest

from deberta_jax.__main__ import main
from deberta_jax.convert.commands.detect import _style

from .conftest import assert_nan_is_named


def test_tokens_are_listed_and_markup_in_the_text_is_kept(
    model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detect", str(model_folders["discriminator"]), "It was a [bold] move."]) == 0
    out = capsys.readouterr().out
    assert "replaced?" in out
    assert out.splitlines()[-1] == "It was a [bold] move."


def test_missing_head_is_one_line(model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", str(model_folders["generator"]), "text"]) == 1
    err = capsys.readouterr().err
    assert "has no rtd_head; it has deberta (the encoder), mlm_head" in err
    assert err.count("\n") == 1


def test_more_probable_tokens_have_stronger_colors() -> None:
    assert [_style(probability) for probability in (0.0, 0.1, 0.3, 0.9)] == ["", "yellow", "dark_orange", "bold red"]


def test_a_model_with_nan_is_an_error(model_with_nan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_nan_is_named(["detect", str(model_with_nan), "text"], capsys)
