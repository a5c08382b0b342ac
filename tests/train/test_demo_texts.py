"""The demo's examples: both versions of a sentence have the same words, and no chapter is in two splits."""

import json
from collections import Counter

import numpy as np

from deberta_jax.train.demo_texts import (
    EXCHANGED,
    KNOWN_TO_TINY,
    ORIGINAL,
    cut_passages,
    cut_sentences,
    exchange_examples,
    exchange_words,
    frequent_words,
    novel_chapters,
    write_texts,
)


def test_two_words_are_exchanged_and_frequent_ones_stay() -> None:
    sentence = "The captain opened the letter with great care, and laughed."
    frequent = {"the", "with", "and"}
    found = {exchange_words(sentence, frequent, np.random.default_rng(seed)) for seed in range(60)}
    assert found == {
        "The letter opened the captain with great care, and laughed.",
        "The captain letter the opened with great care, and laughed.",
        "The captain great the letter with opened care, and laughed.",
        "The captain opened the great with letter care, and laughed.",
    }
    assert exchange_words("He sat the the the the the the.", {"the"}, np.random.default_rng(0)) is None
    assert exchange_words("It was good to be good.", {"to", "be"}, np.random.default_rng(0)) is None


def test_sentences_and_passages() -> None:
    text = "Chapter one began on a cold day in May. no capital letter here at all in this one. Short. " + "Long " * 30
    assert list(cut_sentences(text)) == ["Chapter one began on a cold day in May."]
    passages = list(cut_passages(" ".join(map(str, range(100)))))
    assert [len(passage.split()) for passage in passages] == [45, 55]
    assert " ".join(passages) == " ".join(map(str, range(100)))


def test_titles_and_chapters() -> None:
    assert novel_chapters("EMMA\nby\nCHAPTER I\na\nb\nVOLUME II\nCHAPTER I\nc") == ("Emma", ["a\nb", "c"])
    assert "the" in frequent_words(["The cat and the dog"])


def test_examples_come_in_pairs_with_the_same_words() -> None:
    text = " ".join(f"The {w} captain opened letter {w} with care today." for w in ("old", "young", "tall"))
    examples = exchange_examples([text], {"the"}, np.random.default_rng(0), 2)
    assert Counter(example["label"] for example in examples) == {EXCHANGED: 2, ORIGINAL: 2}
    words = Counter(" ".join(sorted(example["text"].split())) for example in examples)
    assert set(words.values()) == {2}


def test_the_files_of_the_demo(tmp_path) -> None:
    counts = write_texts(tmp_path)
    examples = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in counts
    }
    assert counts == {"exchange-train": 2000, "novel-train": 1500, "exchange-test": 400, "novel-test": 400}
    assert {example["label"] for example in examples["exchange-test"]} == {EXCHANGED, ORIGINAL}
    titles = {example["label"] for example in examples["novel-train"]}
    assert titles == {example["label"] for example in examples["novel-test"]}
    assert len(titles) == 5
    assert KNOWN_TO_TINY not in titles
    text = " ".join((tmp_path / "pretraining.txt").read_text(encoding="utf-8").split())
    for name in ("novel", "exchange"):
        assert not {row["text"] for row in examples[f"{name}-test"]} & {
            row["text"] for row in examples[f"{name}-train"]
        }
    assert not any(row["text"] in text for row in examples["novel-test"])
    assert all(row["text"] in text for row in examples["novel-train"])
    before = (tmp_path / "pretraining.txt").stat().st_mtime_ns
    assert write_texts(tmp_path) == counts
    assert (tmp_path / "pretraining.txt").stat().st_mtime_ns == before
