"""Tests of the second text of a choice."""

import pytest

from deberta_jax.predict.choice_rows import join_question_and_choice


@pytest.mark.parametrize(
    ("question", "joined"),
    [
        (None, "a choice"),
        ("", "a choice"),
        ("What is it?", "What is it? a choice"),
        ("It is _ .", "It is a choice ."),
        ("_ is it", "a choice is it"),
        ("It is about___.", "It is about a choice ."),
        ("What does my_name mean?", "What does my_name mean? a choice"),
    ],
)
def test_a_choice_fills_the_blank_of_a_question(question, joined):
    assert join_question_and_choice(question, "a choice") == joined


def test_a_choice_is_inserted_literally():
    assert join_question_and_choice("It is _.", r"\1") == r"It is \1 ."
