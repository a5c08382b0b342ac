"""Tokenizes sentences of words into windows.

The first piece of a word has the word's label. The other pieces have none, neither in training nor in predictions. A
sentence of more than `max_length` pieces is read in several windows. Each word is predicted in one of them, with words
on both sides of it where the sentence has any.
"""

import dataclasses
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int32

from deberta_jax.errors import UserError
from deberta_jax.predict.tokenized_text import spaced_words

from ..base import ExampleBatch
from ..on_demand import OnDemand
from ..packed import chunks
from ..ragged import Blocks, Ragged, RaggedBuilder, as_numpy
from .sentences import NO_LABEL, Sentence

NO_WORD = -2  # mark of a token that is not the first piece of a word to predict


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
class WindowTable(OnDemand[Window]):
    """Windows in columns, of which one is built whenever it is read.

    Attributes:
      ids: token ids of each window, including [CLS] and [SEP].
      marks: for each token the class index of its word, or NO_LABEL for a word without one, if the token is the first
        piece of a word that is predicted in the window; NO_WORD for all other tokens.
      sentence: index of the sentence of each window.
      first: index in its sentence of the first word that is predicted in each window.
      words: indices of the predicted words, for windows in which they do not simply follow each other.
      labeled: whether the marks are labels.
    """

    ids: Ragged
    marks: Blocks
    sentence: Int32[np.ndarray, "E"]
    first: Int32[np.ndarray, "E"]
    words: Mapping[int, Int32[np.ndarray, "words"]]
    labeled: bool

    def __len__(self) -> int:
        return len(self.ids)

    def _build(self, position: int) -> Window:
        marks = self.marks_of(position)
        positions = np.flatnonzero(marks != NO_WORD)
        words = self.words.get(position)
        return Window(
            sentence=int(self.sentence[position]),
            ids=self.ids[position],
            words=self.first[position] + np.arange(len(positions)) if words is None else words,
            positions=positions,
            labels=marks[positions].astype(np.int32) if self.labeled else None,
        )

    def marks_of(self, index: int) -> Int[np.ndarray, "tokens"]:
        """Returns the marks of the tokens of a window."""
        return self.marks.row(int(self.ids.starts[index]), int(self.ids.lengths[index]))


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedWords:
    """The E windows of the sentences of a split. Implements `base.Encoded`, whose examples are windows.

    Each word that has pieces is predicted in exactly one window.
    """

    windows: WindowTable
    notes: tuple[str, ...]

    @property
    def lengths(self) -> Int32[np.ndarray, "E"]:
        return self.windows.ids.lengths

    @property
    def labeled(self) -> bool:
        return self.windows.labeled

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns int32 `input_ids`, `attention_mask` and `token_type_ids` [B, length], and `labels` if there are any.

        `labels` is -1 except at the first pieces of the words to predict that have a label.
        """
        shape = (len(indices), length)
        batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}
        if self.labeled:
            batch["labels"] = np.full(shape, NO_LABEL, np.int32)
        for row, index in enumerate(indices.tolist()):
            ids = self.windows.ids[index]
            batch["input_ids"][row, : len(ids)] = ids
            batch["attention_mask"][row, : len(ids)] = 1
            if self.labeled:
                batch["labels"][row, : len(ids)] = np.maximum(self.windows.marks_of(index), NO_LABEL)
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
    windows, words = _WindowBuilder(budget, tokenizer), 0
    empty = without_label = without_pieces = cut_words = several_windows = 0
    for chunk in chunks(sentences, lambda sentence: sum(map(len, sentence.words)) + len(sentence.words)):
        texts = [text for sentence in chunk for text in spaced_words(sentence.words)]
        words += len(texts)
        pieces_of_words = iter(tokenizer.encode_batch(texts) if texts else ())
        for sentence in chunk:
            pieces = [next(pieces_of_words) for _ in sentence.words]
            empty += not pieces
            without_label += (sentence.labels or ()).count(NO_LABEL)
            without_pieces += sum(not ids for ids in pieces)
            cut_words += sum(len(ids) > budget for ids in pieces)
            several_windows += windows.add(pieces, sentence.labels) > 1
    table = windows.build(labeled=sentences[0].labels is not None)
    if not len(table):
        raise UserError(f"none of the {words} words has a piece in the tokenizer's vocabulary")
    counts = {
        f"{several_windows} of {len(sentences)} sentences read in several windows of {max_length} tokens": (
            several_windows
        ),
        f"{empty} empty sentences": empty,
        f"{without_pieces} words without pieces, predicted as O or the first label": without_pieces,
        f"{cut_words} words cut to {budget} pieces": cut_words,
        f"{without_label} words without a label": without_label,
    }
    return EncodedWords(table, (*notes, *(note for note, count in counts.items() if count)))


class _WindowBuilder:
    """Collects the windows of successive sentences, each of at most `budget` pieces between [CLS] and [SEP]."""

    def __init__(self, budget: int, tokenizer: WordTokenizer) -> None:
        self._budget, self._tokenizer = budget, tokenizer
        self._ids, self._marks = RaggedBuilder(), Blocks(np.int8)
        self._sentence, self._first = array("i"), array("i")
        self._words: dict[int, np.ndarray] = {}
        self._sentences = 0

    def add(self, pieces: Sequence[Sequence[int]], labels: Sequence[int] | None) -> int:
        """Adds the windows of the next sentence from the pieces of its words, and returns their number.

        Words without pieces are left out.
        """
        words = [index for index, ids in enumerate(pieces) if ids]
        kept = [pieces[index][: self._budget] for index in words]
        before = len(self._ids)
        for contained, predicted in sentence_windows([len(ids) for ids in kept], self._budget):
            ids, marks = [self._tokenizer.cls_id], [NO_WORD]
            for place in contained:
                ids += kept[place]
                marks.append(NO_WORD if place not in predicted else labels[words[place]] if labels else NO_LABEL)
                marks += [NO_WORD] * (len(kept[place]) - 1)
            ids.append(self._tokenizer.sep_id)
            marks.append(NO_WORD)
            first, last = words[predicted[0]], words[predicted[-1]]
            if last - first >= len(predicted):
                self._words[len(self._ids)] = np.array([words[place] for place in predicted], np.int32)
            self._add_marks(marks)
            self._ids.append(ids)
            self._sentence.append(self._sentences)
            self._first.append(first)
        self._sentences += 1
        return len(self._ids) - before

    def _add_marks(self, marks: list[int]) -> None:
        dtype = np.min_scalar_type(min(NO_WORD, -max(marks) - 1))  # signed, because some marks are negative
        if not np.can_cast(dtype, self._marks.dtype):
            self._marks = self._marks.astype(dtype)
        self._marks.append(marks)

    def build(self, *, labeled: bool) -> WindowTable:
        return WindowTable(
            self._ids.build(),
            self._marks,
            as_numpy(self._sentence),
            as_numpy(self._first),
            self._words,
            labeled,
        )
