"""Tests of the windows of questions and contexts, and of the labels of their tokens."""

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.spans.questions import Answer, SpanQuestion
from deberta_jax.train.tasks.spans.windows import encode_span_questions

from ....support.published_archives import CONTEXT
from ....support.span_questions import SETTINGS, random_question


def test_a_context_that_fits_gives_the_pair_of_the_tokenizer(tokenizer):
    question = SpanQuestion("1", "Who was happy?", CONTEXT, (Answer("Emma was", 16),))
    encoded = encode_span_questions([question], tokenizer, **SETTINGS | {"max_length": 64})
    pair = tokenizer("Who was happy?"[:200], CONTEXT, return_offsets=True)
    assert len(tokenizer.encode("Who was happy?")) <= 10
    assert encoded.lengths.tolist() == [len(pair.input_ids)]
    batch = encoded.batch(np.array([0]), length=60)
    size = len(pair.input_ids)
    assert batch["input_ids"][0, :size].tolist() == pair.input_ids
    assert batch["token_type_ids"][0, :size].tolist() == pair.token_type_ids
    assert batch["attention_mask"][0].tolist() == [1] * size + [0] * (60 - size)
    context = [kind == 1 and offset is not None for kind, offset in zip(pair.token_type_ids, pair.offsets, strict=True)]
    assert batch["choosable"][0].tolist() == [1, *context[1:], *[0] * (60 - size)]
    first, last = batch["ends"][0]
    assert CONTEXT[pair.offsets[first][0] : pair.offsets[last][1]] == "Emma was"
    names = ("input_ids", "attention_mask", "token_type_ids", "choosable", "ends")
    assert {name: (array.dtype.name, array.ndim) for name, array in batch.items()} == dict.fromkeys(names, ("int32", 2))


@pytest.mark.parametrize("seed", range(60))
def test_labels_are_the_fewest_tokens_that_cover_the_answer(tokenizer, seed):
    question = random_question(seed)
    (answer,) = question.answers
    stride = 12 if seed % 2 else 100  # more than the overlap allows
    encoded = encode_span_questions([question], tokenizer, **SETTINGS | {"doc_stride": stride})
    batch = encoded.batch(np.arange(len(encoded.lengths)), length=40)
    offsets = [offset for offset in tokenizer(question.context, return_offsets=True).offsets if offset is not None]
    stop = answer.start + len(answer.text)
    covering = [n for n, (start, end) in enumerate(offsets) if start < stop and end > answer.start]
    windows_with_answer = 0
    for row, (first, last) in enumerate(batch["ends"].tolist()):
        assert batch["choosable"][row, [first, last]].tolist() == [1, 1]
        if (first, last) == (0, 0):
            continue
        windows_with_answer += 1
        start, end = encoded.characters(row, first, last)
        assert answer.text in question.context[start:end]
        assert start <= answer.start
        assert stop <= end
        assert last - first == covering[-1] - covering[0]
        # Neither end can be omitted.
        assert encoded.characters(row, first, first)[1] > answer.start
        assert encoded.characters(row, last, last)[0] < stop
    short = covering[-1] - covering[0] < SETTINGS["max_answer_length"]
    assert windows_with_answer or not short, "an answer that may be predicted is whole in a window"
    lost = "1 answers are in no window as a whole"
    too_long = "1 answers have more than 14 tokens and cannot be predicted"
    assert (lost in encoded.notes, too_long in encoded.notes) == (not windows_with_answer, not short)


def test_cut_and_lost_texts_are_counted(tokenizer):
    long = "was the man happy " * 5
    context = "a man " * 60
    questions = [
        SpanQuestion("1", long, context, (Answer(context[:-1], 0),)),
        SpanQuestion("2", "who", context, (Answer("a", 0), Answer("man", 2))),
        SpanQuestion("3", "who", "\u200b", (Answer("\u200b", 0),)),  # has no tokens
    ]
    encoded = encode_span_questions(questions, tokenizer, **SETTINGS, training=True, notes=("as read",))
    assert encoded.notes == (
        "as read",
        "windows over 3 questions",
        "1 questions cut to 10 tokens",
        "1 questions have several answers, of which the first is trained on",
        "2 answers are in no window as a whole",
        "1 answers have more than 14 tokens and cannot be predicted",
    )
    assert encoded.lengths.max() == 40
    assert (encoded.lengths >= 3).all()
    assert encoded.batch(np.array([len(encoded.lengths) - 1]), length=40)["choosable"].sum() == 1  # [CLS]
    held_out = encode_span_questions(questions, tokenizer, **SETTINGS)
    assert not any("several answers" in note for note in held_out.notes)
    assert encode_span_questions([SpanQuestion("1", "who", CONTEXT, None)], tokenizer, **SETTINGS).ends is None


def test_batches_have_windows_for_examples(tokenizer):
    encoded = encode_span_questions([random_question(seed) for seed in range(8)], tokenizer, **SETTINGS)
    batch = next(FinetuneBatches(encoded, batch_size=4, max_length=40, seed=0))
    assert {name: array.shape for name, array in batch.items()} == {
        "input_ids": (4, 40),
        "attention_mask": (4, 40),
        "token_type_ids": (4, 40),
        "choosable": (4, 40),
        "ends": (4, 2),
    }
    seen = [index for indices, _ in evaluation_batches(encoded, batch_size=3, max_length=40) for index in indices]
    assert sorted(seen) == list(range(len(encoded.lengths)))


def test_too_little_room_for_a_context_is_refused(tokenizer):
    with pytest.raises(UserError, match="max_length 27 leaves 14 tokens for the context"):
        encode_span_questions([random_question(0)], tokenizer, **SETTINGS | {"max_length": 27})
