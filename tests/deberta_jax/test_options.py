"""Mistakes in options, which tyro quotes."""

import dataclasses
from typing import Literal

import pytest

from deberta_jax.options import parse_options
from deberta_jax.terminal import printable

from ..support.hostile_texts import HOSTILE, MARKUP


@dataclasses.dataclass
class Settings:
    """Settings"""

    kind: Literal["a", "b"] = "a"
    """kind"""
    text: str = ""
    """text"""


@pytest.mark.parametrize(
    "options",
    [["--kind", HOSTILE], [f"--{HOSTILE}"], ["--txet", HOSTILE], ["--kind", "x" * 100_000], ["--kind", MARKUP]],
    ids=["value", "name", "unknown option", "long", "markup"],
)
def test_a_mistake_is_printed_without_control_characters(options: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_options(Settings, options, prog="test")
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert printable(err, lines=True) == err
    assert 0 < len(err) < 10_000
    if options[1:] == [MARKUP]:
        assert "[red]x[/red] [/]" in err


def test_values_are_exact(capsys) -> None:
    assert parse_options(Settings, ["--text", HOSTILE]).text == HOSTILE
    assert parse_options(Settings, ["--text", "x" * 5000], prog="test").text == "x" * 5000
    assert capsys.readouterr() == ("", "")
