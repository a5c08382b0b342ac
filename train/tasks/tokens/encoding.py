"""Tokenizes sentences of words into windows.

The first piece of a word has the word's label. The other pieces have none, neither in training nor in predictions. A
sentence of more than `max_length` pieces is read in several windows. Each word is predicted in one of them, with words
on both sides of it where the sentence has any.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int32

from deberta_jax.errors import UserError

from ..base import ExampleBatch
from .sentences import NO_LABEL, Sentence


class WordTokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The part of a sentence that is one row.

    Attributes:
      sentence: index of the sentence in its split.
      ids: token ids including [CLS] and [SEP].
      words: indices in the sentence of the words that are predicted in this window.
      positions: position in the row of the first piece of each of these words.
      labels: class index of each of these words, NO_LABEL for a word without a label; `None` for unlabeled sentences.
    """

    sentence: int
    ids: Int32[np.ndarray, "tokens"]
    words: Int[np.ndarray, "words"]
    positions: Int[np.ndarray, "words"]
    labels: Int32[np.ndarray, "words"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedWords:
    """The E windows of the sentences of a split. Implements `base.Encoded`, whose examples are windows.

    Each word that has pieces is predicted in exactly one window.
    """

    windows: Sequence[Window]
    lengths: Int32[np.ndarray, "E"]
    labeled: bool
    notes: tuple[str, ...]

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns int32 `input_ids`, `attention_mask` and `token_type_ids` [B, length], and `labels` if there are any.

        `labels` is -1 except at the first pieces of the words to predict that have a label.
        """
        shape = (len(indices), length)
        batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
        if self.labeled:
            batch["labels"] = np.full(shape, NO_LABEL, np.int32)
        for row, window in enumerate(self.windows[index] for index in indices):
            batch["input_ids"][row, : len(window.ids)] = window.ids
            batch["attention_mask"][row, : len(window.ids)] = 1
            if window.labels is not None:
                batch["labels"][row, window.positions] = window.labels
        return batch


def sentence_windows(sizes: Sequence[int], budget: int) -> Iterator[tuple[range, range]]:
    """Yields for each window the words that it contains and the words that are predicted in it.

    A window contains at most `budget` pieces, and each word is predicted once. Except at the ends of the sentence, up
    to a quarter of a window on either side is only context.

    Args:
      sizes: the number of pieces of each word, at most `budget`.
      budget: the number of pieces that fit into a window.
    """
    first, margin = 0, budget // 4
    while first < len(sizes):
        # Extend the window to the left by context that earlier windows predict, then to the right as far as possible.
        start, pieces = first, 0
        while start > 0 and pieces + sizes[start - 1] <= min(margin, budget - sizes[first]):
            start -= 1
            pieces += sizes[start]
        stop = first
        while stop < len(sizes) and pieces + sizes[stop] <= budget:
            pieces += sizes[stop]
            stop += 1
        # Leave the last words to the next window, except at the end of the sentence. At least one word is predicted.
        last, context_pieces = stop, 0
        while stop < len(sizes) and last > first + 1 and context_pieces + sizes[last - 1] <= margin:
            last -= 1
            context_pieces += sizes[last]
        yield range(start, stop), range(first, last)
        first = last


def encode_sentences(
    sentences: Sequence[Sentence], tokenizer: WordTokenizer, *, max_length: int, notes: Sequence[str] = ()
) -> EncodedWords:
    """Returns the windows of sentences, of at most `max_length` tokens each. `notes` come before the notes made here.

    As in the official task, every word of a sentence but the first is preceded by a space. This makes no difference for
    SentencePiece, but it changes the pieces of byte-level BPE. `is_split_into_words` of transformers puts a space
    before the first word as well.

    Raises:
      UserError: if `max_length` leaves no room for a word, or no word of any sentence has pieces.
    """
    budget = max_length - 2
    if budget < 1:
        raise UserError(f"max_length is {max_length}; it must be at least 3, for a piece between [CLS] and [SEP]")
    texts = [f"{' ' * (index > 0)}{word}" for sentence in sentences for index, word in enumerate(sentence.words)]
    pieces_of_words = iter(tokenizer.encode_batch(texts) if texts else ())
    windows: list[Window] = []
    without_label = sum(label == NO_LABEL for sentence in sentences for label in sentence.labels or ())
    without_pieces = cut_words = several_windows = 0
    for number, sentence in enumerate(sentences):
        pieces = [next(pieces_of_words) for _ in sentence.words]
        without_pieces += sum(not ids for ids in pieces)
        cut_words += sum(len(ids) > budget for ids in pieces)
        before = len(windows)
        windows += _windows(number, sentence, pieces, tokenizer, budget)
        several_windows += len(windows) - before > 1
    if not windows:
        raise UserError(f"none of the {len(texts)} words has a piece in the tokenizer's vocabulary")
    counts = {
        f"{several_windows} of {len(sentences)} sentences read in several windows of {max_length} tokens": (
            several_windows
        ),
        f"{sum(not sentence.words for sentence in sentences)} empty sentences": any(not s.words for s in sentences),
        f"{without_pieces} words without pieces, predicted as O or the first label": without_pieces,
        f"{cut_words} words cut to {budget} pieces": cut_words,
        f"{without_label} words without a label": without_label,
    }
    return EncodedWords(
        windows,
        np.array([len(window.ids) for window in windows], np.int32),
        sentences[0].labels is not None,
        (*notes, *(note for note, count in counts.items() if count)),
    )


def _windows(
    number: int, sentence: Sentence, pieces: Sequence[Sequence[int]], tokenizer: WordTokenizer, budget: int
) -> Iterator[Window]:
    """Yields the windows of a sentence from the pieces of its words. Words without pieces are left out."""
    words = [index for index, ids in enumerate(pieces) if ids]
    kept = [pieces[index][:budget] for index in words]
    for contained, predicted in sentence_windows([len(ids) for ids in kept], budget):
        starts = 1 + np.cumsum([0, *(len(kept[index]) for index in contained)])
        predicted_words = np.array([words[index] for index in predicted])
        ids = [tokenizer.cls_id, *(piece for index in contained for piece in kept[index]), tokenizer.sep_id]
        yield Window(
            sentence=number,
            ids=np.array(ids, np.int32),
            words=predicted_words,
            positions=starts[np.array(predicted) - contained.start],
            labels=None if sentence.labels is None else np.array(sentence.labels, np.int32)[predicted_words],
        )
