"""Tests of the token ids of examples."""

import numpy as np

from deberta_jax.tokenizers.tokenizer import Encoding
from deberta_jax.train.tasks.classification.encoding import encode_examples
from deberta_jax.train.tasks.classification.examples import Example

from ....support.xlnet import xlnet_tokenizer


class WordLengths:
    """A tokenizer of `[CLS] a [SEP] b [SEP]`, cut at its end. The id of a word is its length plus 10."""

    def __call__(self, text, pair=None, *, max_length):
        first = [1, *(10 + len(word) for word in text.split()), 2]
        second = [*(10 + len(word) for word in pair.split()), 2] if pair is not None else []
        types = [0] * len(first) + [1] * len(second)
        return Encoding((first + second)[:max_length], types[:max_length])


def test_examples_are_cut_and_padded_by_the_batch():
    examples = [Example("a bcd", "ef", 1), Example("a b c d", "e", 0), Example("a", None, 2)]
    encoded = encode_examples(examples, WordLengths(), max_length=6)
    batch = encoded.batch(np.arange(3), length=6)
    assert {array.dtype.name for array in batch.values()} == {"int32"}
    assert batch["input_ids"].tolist() == [[1, 11, 13, 2, 12, 2], [1, 11, 11, 11, 11, 2], [1, 11, 2, 0, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6, [0] * 6]
    assert encoded.lengths.tolist() == [6, 6, 3]
    assert encoded.labels.tolist() == [1, 0, 2]
    assert encoded.notes == ("1 cut to 6 tokens",)  # the first example just fits
    assert encoded.batch(np.array([2]), length=4)["attention_mask"].tolist() == [[1, 1, 1, 0]]


def test_scores_are_floats():
    encoded = encode_examples([Example("a", None, 0.5)], WordLengths(), max_length=4)
    assert encoded.labels.dtype == np.float32
    assert encoded.notes == ()


def test_unlabeled_examples_have_batches_without_labels():
    encoded = encode_examples([Example("a", None, None)], WordLengths(), max_length=4)
    assert not encoded.labeled
    assert "labels" not in encoded.batch(np.array([0]), length=4)


def test_the_cls_of_xlnet_is_last_and_has_a_type_of_its_own():
    tokenizer = xlnet_tokenizer()
    for examples in ([Example("she was", "happy", 1), Example("he", "a man", 0)], [Example("she", None, 1)]):
        encoded = encode_examples(examples, tokenizer, max_length=20)
        batch = encoded.batch(np.arange(len(examples)), length=20)
        for row, example in enumerate(examples):
            alone = tokenizer(example.text, example.pair)
            size = len(alone.input_ids)
            assert batch["input_ids"][row].tolist() == alone.input_ids + [0] * (20 - size)
            assert batch["token_type_ids"][row].tolist() == alone.token_type_ids + [0] * (20 - size)
            assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (20 - size)
