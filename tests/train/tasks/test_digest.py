"""Digests of examples: a change of anything that training or scores read changes them."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from deberta_jax.train.tasks.choices.questions import ChoiceQuestion
from deberta_jax.train.tasks.classification.encoding import EncodedExamples
from deberta_jax.train.tasks.classification.examples import Example
from deberta_jax.train.tasks.digest import examples_digest, tokens_digest
from deberta_jax.train.tasks.ragged import Ragged
from deberta_jax.train.tasks.spans.questions import Answer, SpanQuestion
from deberta_jax.train.tasks.tokens.sentences import Sentence

EXAMPLE = Example("a text", "a pair", 1, "question 3", "an answer")
SCORE = Example("a text", None, 2.5)
CHOICE = ChoiceQuestion("a context", "a question", ("no", "yes"), 1)
SENTENCE = Sentence(("Ann", "ran"), (1, 0))
SPAN = SpanQuestion("7", "who", "Ann and Emma", (Answer("Ann", 0), Answer("Emma", 8)))


@pytest.mark.parametrize(
    ("example", "changes"),
    [
        (EXAMPLE, {"text": "a text "}),
        (EXAMPLE, {"pair": None}),
        (EXAMPLE, {"pair": ""}),
        (EXAMPLE, {"label": 0}),
        (EXAMPLE, {"group": "question 4"}),
        (EXAMPLE, {"answer": "another"}),
        (SCORE, {"label": 2.5000000000000004}),
        (SCORE, {"text": "a \ud83d"}),
        (CHOICE, {"context": "another"}),
        (CHOICE, {"question": None}),
        (CHOICE, {"choices": ("yes", "no")}),
        (CHOICE, {"label": 0}),
        (SENTENCE, {"words": ("Ann r", "an")}),
        (SENTENCE, {"labels": (0, 1)}),
        (SENTENCE, {"labels": None}),
        (SPAN, {"id": "8"}),
        (SPAN, {"question": "who else"}),
        (SPAN, {"context": "Ann and Emma."}),
        (SPAN, {"answers": (Answer("Ann", 0),)}),
        (SPAN, {"answers": (Answer("Ann", 0), Answer("Emma", 9))}),
        (SPAN, {"answers": ()}),
        (SPAN, {"answers": None}),
    ],
)
def test_every_field_counts(example: Any, changes: dict[str, Any]) -> None:
    others = [dataclasses.replace(example)] * 3
    changed = [*others[:2], dataclasses.replace(example, **changes)]
    assert examples_digest(others) == examples_digest(list(others))
    assert examples_digest(changed) != examples_digest(others)


def test_order_and_number_count() -> None:
    first, second = Example("a", None, 0), Example("b", None, 1)
    digests = {examples_digest(rows) for rows in ([], [first], [first, second], [second, first], [first] * 2)}
    assert len(digests) == 5
    many = [Example(str(number), None, number % 3) for number in range(2500)]
    assert examples_digest(many) != examples_digest([*many[:1999], many[2000], many[1999], *many[2001:]])


def test_the_digest_is_a_format_on_disk_and_the_same_in_every_process() -> None:
    """Another hash seed of Python makes no difference."""
    code = (
        "from deberta_jax.train.tasks.digest import examples_digest as digest\n"
        "from deberta_jax.train.tasks.spans.questions import Answer, SpanQuestion\n"
        'print(digest([SpanQuestion("7", "who", "Ann and Emma", (Answer("Ann", 0), Answer("Emma", 8)))]))'
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"}
    )
    assert other.stdout.strip() == examples_digest([SPAN])
    assert examples_digest([SPAN]) == "11e9b8e0ca50fee0c206a56e408c35b52688f139b1f45370bfc2a7f4d56126ce"


def test_the_tokenizer_counts() -> None:
    """The second half of the examples is longer; a lower-casing tokenizer gives other ids."""

    def encode(lower: bool, count: int = 3000) -> EncodedExamples:
        texts = [("Ab" * (1 + (index > count // 2)))[:4] for index in range(count)]
        ids = Ragged.of([ord(character) for character in (text.lower() if lower else text)] for text in texts)
        return EncodedExamples(ids, None, None)

    digests = [tokens_digest(one) for one in (encode(False), encode(False), encode(True), encode(False, 2999))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert tokens_digest(encode(False, 1)) != tokens_digest(encode(True, 1))
