"""Tests filters, normalization and exact duplicates: what each removes, and how it is counted."""

from pathlib import Path

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data import storage
from deberta_jax.train.data.corpus import Removal
from deberta_jax.train.data.preparation.rules import TextRules, removing_rule
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text_files import TextError

from ....support.small_corpus import Words, segments, stored_rows, write

SETTINGS = {"sequence_length": 64, "boundary": "line", "held_out_fraction": 0.0}
LIST = "• one\n- two\nthree\n• four"


@pytest.mark.parametrize(
    ("rule", "limit", "kept", "removed"),
    [
        ("min_characters", 5, "abcde", "abcd"),
        ("max_characters", 5, "abcde", "abcdef"),
        ("min_letter_share", 0.5, "ab 12", "ab 123"),
        ("min_letter_share", 0.9, "日本語 ελληνικά", "日本語 1234567"),
        ("max_symbol_share", 0.25, "# a b c", "# a b"),
        ("max_symbol_share", 0.5, "and so on… right", "on… and...  # on"),
        ("min_mean_word_length", 3, "abc abc", "abc ab"),
        ("max_mean_word_length", 3, "abc abc", "abc abcd"),
        ("max_bullet_share", 0.75, LIST, f"{LIST}\n* five"),
        ("max_ellipsis_share", 0.5, "one...\ntwo", "one...\ntwo…\nthree"),
        ("max_repeated_line_share", 0.5, "one\n one\ntwo\nthree", "one\none\n\none"),
    ],
)
def test_each_filter_removes_what_is_beyond_its_limit(rule, limit, kept, removed):
    rules = TextRules(**{rule: limit})
    assert removing_rule(kept, rules) is None
    assert removing_rule(removed, rules) == rule
    assert removing_rule(removed, TextRules()) is None


def test_documents_are_counted_by_the_rule_that_removed_them(tmp_path):
    lines = ["a long enough line", "short", "1234567890123", "a long enough line", "another long line", "tiny"]
    text = write(tmp_path / "a.txt", "\n".join(lines))
    rules = TextRules(min_characters=6, min_letter_share=0.5)
    corpus = prepare([text], Words(), tmp_path / "c", rules=rules, **SETTINGS)
    assert corpus.removed == (
        Removal("drop_duplicates", 1), Removal("min_characters", 2), Removal("min_letter_share", 1)
    )  # fmt: skip
    assert corpus.rules == rules
    assert corpus.train.documents == 2
    assert len(segments(stored_rows(corpus, corpus.train))) == 2
    with pytest.raises(UserError, match="contains a corpus with min_characters 6, not 7; delete the folder"):
        prepare([text], Words(), corpus.folder, rules=TextRules(min_characters=7, min_letter_share=0.5), **SETTINGS)


def test_duplicates_stay_on_request_and_the_first_of_them_otherwise(tmp_path):
    first, second = (write(tmp_path / f"{name}.txt", "b\na\nb\n") for name in "xy")
    dropped = prepare([first, second], Words(), tmp_path / "c", **SETTINGS)
    assert (dropped.train.documents, dropped.removed) == (2, (Removal("drop_duplicates", 4),))
    kept = prepare([first, second], Words(), tmp_path / "d", rules=TextRules(drop_duplicates=False), **SETTINGS)
    assert (kept.train.documents, kept.removed) == (6, ())


def test_the_text_of_many_duplicates_is_not_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "CHUNK_BYTES", 1000)
    documents = [f"{number} {'x' * 80}" for number in range(40)]
    repeated = [line for document in documents for line in (document, *[documents[0]] * 20)]
    expected = prepare([write(tmp_path / "a.txt", "\n".join(documents))], Words(), tmp_path / "c", **SETTINGS)
    lengths, read = [], storage.read

    def measured(path: Path, start: int = 0, length: int | None = None) -> bytes:
        content = read(path, start, length)
        if path.suffix == ".documents":
            lengths.append(len(content))
        return content

    monkeypatch.setattr(storage, "read", measured)
    corpus = prepare([write(tmp_path / "b.txt", "\n".join(repeated))], Words(), tmp_path / "d", **SETTINGS)
    assert corpus.removed == (Removal("drop_duplicates", 800),)
    assert np.array_equal(stored_rows(corpus, corpus.train), stored_rows(expected, expected.train))
    assert max(lengths) < 1200
    assert sum(lengths) == sum(map(len, documents))


def test_filters_do_not_change_which_documents_are_held_out(tmp_path):
    """A document keeps its number in the text, so that corpora with other rules can be evaluated on the same text."""
    text = write(tmp_path / "a.txt", "\n".join(f"{'x' * (1 + n % 3)}{n}" for n in range(300)))
    settings = SETTINGS | {"held_out_fraction": 0.2}
    every = prepare([text], Words(10**6), tmp_path / "c", **settings)
    some = prepare([text], Words(10**6), tmp_path / "d", rules=TextRules(min_characters=4), **settings)
    tokens = [{token for part in segments(stored_rows(c, c.held_out)) for token in part} for c in (every, some)]
    assert 0 < len(tokens[1]) < len(tokens[0])
    assert tokens[1] <= tokens[0]


def test_normalization(tmp_path):
    text = write(tmp_path / "a.txt", "caf\u00e9 \ufb01n\ncafe\u0301 \ufb01n")
    for name, different in (("none", 2), ("nfc", 1), ("nfkc", 1)):
        rules = TextRules(normalization=name)
        corpus = prepare([text], Words(10**6), tmp_path / name, rules=rules, **SETTINGS)
        assert corpus.train.documents == different
        (tokens,) = {tuple(part) for part in segments(stored_rows(corpus, corpus.train))[:1]}
        normalized = {"none": "caf\u00e9 \ufb01n", "nfc": "caf\u00e9 \ufb01n", "nfkc": "caf\u00e9 fin"}[name]
        assert list(tokens) == Words(10**6).encode_batch([normalized])[0]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_characters": 0}, "min_characters is 0; it must be at least 1"),
        ({"near_duplicates": 0.2}, "near_duplicates is 0.2; it must be at least 0.5 and at most 1"),
        ({"normalization": "nfd"}, "normalization is 'nfd'; it must be one of none, nfc, nfkc"),
        ({"text_field": ""}, "text_field is empty"),
        ({"min_characters": 9, "max_characters": 8}, "min_characters is 9 and max_characters is 8, so that every"),
    ],
)
def test_invalid_rules(rules, message):
    with pytest.raises(UserError, match=message):
        TextRules(**rules)


def test_rules_that_remove_everything_are_named(tmp_path):
    text = write(tmp_path / "a.txt", "one\ntwo\none")
    with pytest.raises(TextError, match=r"the rules removed every document of a\.txt: .*min_characters 3; loosen them"):
        prepare([text], Words(), tmp_path / "c", rules=TextRules(min_characters=4), **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
