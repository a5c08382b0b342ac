"""JSON that every parser reads."""

import json
import math

import pytest

from deberta_jax.strict_json import to_json


@pytest.mark.parametrize("indent", [None, 2])
def test_numbers_that_are_not_finite_become_null(indent: int | None) -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, True, None, 3)}], "d": "NaN"}
    text = to_json(value, indent=indent)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None, {"c": [None, True, None, 3]}],
        "d": "NaN",
    }


def test_text_stays_readable_and_can_always_be_encoded() -> None:
    assert to_json({"日本": "é🎉"}) == '{"日本": "é🎉"}'
    lines = {"text": "one\u2028two\u2029three\x85four\x0bfive"}
    assert len(to_json(lines).splitlines()) == 1
    assert json.loads(to_json(lines)) == lines
    half = {"text": "\ud83d!"}
    assert json.loads(to_json(half).encode()) == half


def test_ascii_is_what_any_terminal_shows() -> None:
    value = {"na\x1bme": "\x7f\x9b\u202e日\ud800", "number": math.nan}
    text = to_json(value, indent=2, ascii=True)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {**value, "number": None}
