"""Tests of reading JSON objects in every arrangement in which published files have them."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.sources.json_rows import json_objects
from deberta_jax.train.tasks.sources.text_files import open_text

ARRANGEMENTS = {
    "lines": ('{"a": 1}\n{"a": 2}', [1, 2]),
    "concatenated": ('{"a": 1}{"a": 2}', [1, 1]),  # `cat` of files that end without a line end
    "one line": ('{"a": 1} {"a": 2}', [1, 1]),
    "blank lines": ('{"a": 1}\r\n\r\n{"a": 2}\r\n', [1, 3]),
    "list": ('[{"a": 1}, {"a": 2}]', [1, 1]),
    "printed list": ('[\n {\n  "a": 1\n },\n {"a": 2}\n]\n', [2, 5]),
    "lists": ('[{"a": 1}]\n[]\n[{"a": 2}]', [1, 3]),
    "printed objects": ('{\n "a": 1\n}\n{\n "a": 2\n}', [1, 4]),
}


@pytest.mark.parametrize(("text", "lines"), ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_objects_have_the_line_on_which_they_begin(write, text, lines):
    assert list(json_objects(open_text(write("a.json", text)))) == list(zip(lines, [{"a": 1}, {"a": 2}], strict=True))


BAD = {
    "twin": ('{"a": 1}\n{"label": 0, "label": 1}', r"^a\.json, line 2: the key 'label' occurs twice in one object"),
    "inner twin": ('{"a": {"b": 1, "b": 1}}', r"line 1: the key 'b' occurs twice"),
    "cut string": ('{"a": 1}\n{"a": "tex', r"^a\.json is truncated: it ends inside the object that begins on line 2"),
    "cut object": ('{"a": 1}\n\n{"a": 1,', r"is truncated: .* object that begins on line 3, after 18 characters"),
    "cut list": ('[{"a": 1},\n', r"is truncated: it ends inside the list"),
    "open list": ('[{"a": 1}', r"is truncated: it ends inside the list"),
    "no comma": ('[{"a": 1} {"a": 2}]', r"line 1: not JSON \(expecting ',' or '\]'\)"),
    "number": ('{"a": 1}\n7', r"line 2: not a JSON object"),
    "single quotes": ("{'a': 1}", r"line 1: not JSON \(Expecting property name .* at character 2\)"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_json_is_named(write, text, message):
    with pytest.raises(UserError, match=message.replace("^", "^.*/")):
        list(json_objects(open_text(write("a.json", text))))
