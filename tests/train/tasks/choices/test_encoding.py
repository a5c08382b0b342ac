"""Tests of the token ids of multiple-choice questions."""

import numpy as np

from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.choices.encoding import encode_choice_questions
from deberta_jax.train.tasks.choices.questions import ChoiceQuestion

from ....support.letters import Letters
from ....support.xlnet import xlnet_tokenizer


def test_each_choice_is_a_row():
    questions = [ChoiceQuestion("ab", "q", ("x", "yy"), 1), ChoiceQuestion("c", None, ("x", "y", "z"), 0)]
    encoded = encode_choice_questions(questions, Letters(), max_length=16)
    batch = encoded.batch(np.array([0, 1]), length=9)
    a, b, c, q, x, y, z = map(ord, "abcqxyz")
    assert batch["input_ids"].tolist() == [
        [[1, a, b, 2, q, x, 2, 0, 0], [1, a, b, 2, q, y, y, 2, 0], [1, a, b, 2, q, x, 2, 0, 0]],
        [[1, c, 2, x, 2, 0, 0, 0, 0], [1, c, 2, y, 2, 0, 0, 0, 0], [1, c, 2, z, 2, 0, 0, 0, 0]],
    ]
    assert batch["real"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["token_type_ids"][0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert batch["attention_mask"][0, 0].tolist() == [1] * 7 + [0] * 2
    assert batch["labels"].tolist() == [1, 0]
    assert encoded.lengths.tolist() == [8, 5]
    assert {array.dtype.name for array in batch.values()} == {"int32"}


def test_contexts_are_cut_before_choices():
    encoded = encode_choice_questions([ChoiceQuestion("abcdefgh", "q", ("xyz", "w"), 0)], Letters(), max_length=10)
    batch = encoded.batch(np.array([0]), length=10)
    texts = ["".join(chr(i) for i in ids if i > 2) for ids in batch["input_ids"][0]]
    assert texts == ["abcqxyz", "abcdeqw"]
    assert encoded.lengths.tolist() == [10]
    assert encoded.notes == ("1 contexts cut to 10 tokens with the question and the choice",)
    longer = encode_choice_questions([ChoiceQuestion("abc", None, ("x" * 9, "y"), 0)], Letters(), max_length=10)
    assert longer.batch(np.array([0]), length=10)["attention_mask"].sum(axis=-1).tolist() == [[10, 7]]
    assert "1 with choices cut to 10 tokens" in longer.notes


def test_equal_labels_are_noted():
    encoded = encode_choice_questions([ChoiceQuestion("a", None, ("x", "y"), 1)] * 2, Letters(), max_length=10)
    assert encoded.notes == ("the same choice is correct everywhere",)


def test_batches_have_choices_as_an_axis():
    questions = [ChoiceQuestion("ab", None, tuple("xyz"[: 2 + number % 2]), number % 2) for number in range(5)]
    encoded = encode_choice_questions(questions, Letters(), max_length=16)
    batch = next(FinetuneBatches(encoded, batch_size=4, max_length=16, seed=0))
    assert batch["input_ids"].shape == (4, 3, 16)
    seen = [indices for indices, _ in evaluation_batches(encoded, batch_size=2, max_length=16)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(5))


def test_the_cls_of_xlnet_is_last():
    tokenizer = xlnet_tokenizer()
    encoded = encode_choice_questions([ChoiceQuestion("she was", "who", ("she", "he"), 1)], tokenizer, max_length=30)
    batch = encoded.batch(np.array([0]), length=30)
    alone = tokenizer("she was", "who he")
    size = len(alone.input_ids)
    assert batch["input_ids"][0, 1, :size].tolist() == alone.input_ids
    assert batch["token_type_ids"][0, 1, :size].tolist() == alone.token_type_ids
    assert batch["attention_mask"][0, 1].sum() == size
