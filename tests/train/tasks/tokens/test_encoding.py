"""Tests of the windows of sentences."""

import numpy as np

from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.tokens.encoding import encode_sentences, sentence_windows
from deberta_jax.train.tasks.tokens.sentences import Sentence

from ....support.letters import Letters
from ....support.xlnet import xlnet_tokenizer

SILENT = " ."  # spaces and dots have no piece


def test_the_first_piece_of_a_word_has_its_label():
    encoded = encode_sentences([Sentence(("ab", ".", "c"), (1, 2, 3))], Letters(SILENT), max_length=8)
    batch = encoded.batch(np.array([0]), length=8)
    assert batch["input_ids"].tolist() == [[1, ord("a"), ord("b"), ord("c"), 2, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-1, 1, -1, 3, -1, -1, -1, -1]]
    assert batch["token_type_ids"].sum() == 0
    assert {array.dtype.name for array in batch.values()} == {"int32"}
    assert encoded.lengths.tolist() == [5]
    assert encoded.notes == ("1 words without pieces, predicted as O or the first label",)


def test_every_word_is_predicted_once_with_words_around_it():
    rng = np.random.default_rng(0)
    for _ in range(300):
        budget = int(rng.integers(1, 30))
        sizes = rng.integers(1, budget + 1, rng.integers(0, 60)).tolist()
        windows = list(sentence_windows(sizes, budget))
        assert [word for _, predicted in windows for word in predicted] == list(range(len(sizes)))
        for contained, predicted in windows:
            assert sum(sizes[word] for word in contained) <= budget
            assert set(predicted) <= set(contained)
            assert predicted
    contained, predicted = list(sentence_windows([1] * 100, 20))[1]
    assert (predicted.start - contained.start, contained.stop - predicted.stop) == (5, 5)
    assert list(sentence_windows([1] * 20, 20)) == [(range(20), range(20))]


def test_cut_words_and_empty_sentences_are_noted():
    sentences = [Sentence(("abcdefgh", "i"), (0, 1)), Sentence((), ())]
    encoded = encode_sentences(sentences, Letters(SILENT), max_length=6, notes=("read",))
    assert encoded.notes == (
        "read",
        "1 of 2 sentences read in several windows of 6 tokens",
        "1 empty sentences",
        "1 words cut to 4 pieces",
    )
    assert [window.words.tolist() for window in encoded.windows] == [[0], [1]]


def test_every_word_but_the_first_has_a_space_in_front():
    class Spaces(Letters):
        def encode_batch(self, texts):
            self.texts = list(texts)
            return super().encode_batch(texts)

    tokenizer = Spaces()
    encode_sentences([Sentence(("a", "b"), (0, 1)), Sentence(("c",), (0,))], tokenizer, max_length=8)
    assert tokenizer.texts == ["a", " b", "c"]


def test_pieces_are_those_of_the_whole_sentence(tokenizer):
    """SentencePiece never joins pieces across a space."""
    words = ("The", "man", "was", "not", "very", "happy,", "said", "he")
    encoded = encode_sentences([Sentence(words, (0,) * len(words))], tokenizer, max_length=64)
    assert encoded.windows[0].ids.tolist() == tokenizer(" ".join(words)).input_ids


def test_batches_have_windows_for_examples():
    sentences = [Sentence(tuple("abc"[: 1 + number % 3]), tuple([0, 1, 0][: 1 + number % 3])) for number in range(7)]
    encoded = encode_sentences(sentences, Letters(SILENT), max_length=8)
    batch = next(FinetuneBatches(encoded, batch_size=4, max_length=8, seed=0))
    assert batch["labels"].shape == batch["input_ids"].shape == (4, 8)
    seen = [indices for indices, _ in evaluation_batches(encoded, batch_size=4, max_length=8)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(7))


def test_the_cls_of_xlnet_is_last():
    tokenizer = xlnet_tokenizer()
    encoded = encode_sentences([Sentence(("she", "was"), (1, 2))], tokenizer, max_length=16)
    batch = encoded.batch(np.array([0]), length=16)
    words = tokenizer.encode("she"), tokenizer.encode(" was")
    alone = tokenizer.with_special_tokens([*words[0], *words[1]])
    size = len(alone.input_ids)
    assert batch["input_ids"][0].tolist() == [*alone.input_ids, *[0] * (16 - size)]
    assert batch["token_type_ids"][0, :size].tolist() == alone.token_type_ids
    labels = [1, *[-1] * (len(words[0]) - 1), 2, *[-1] * (len(words[1]) - 1)]
    assert batch["labels"][0].tolist() == labels + [-1] * (16 - len(labels))
