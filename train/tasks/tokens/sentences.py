"""Sentences of words to rows of pieces.

The label of a word stands on its first piece; the other pieces have none, in training as in the answer. A sentence of
more than max_length pieces is read in several windows, each word being answered in one of them, with words on both
sides of it where there are any.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from deberta_jax.errors import UserError

from ..base import Batch

_NO_LABEL = -1  # `losses.classification` leaves it out


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
    """Words, and an index of label_names for each; None: not published."""

    words: tuple[str, ...]
    labels: tuple[int, ...] | None


class WordTokenizer(Protocol):
    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What of a sentence is one row: its ids, and the words answered in it with their labels and places in the row."""

    sentence: int
    ids: np.ndarray  # int32, [CLS] and [SEP] included
    words: np.ndarray
    places: np.ndarray
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedWords:
    """Windows of sentences, each word with pieces in exactly one of them. A `base.Encoded`, whose E counts windows."""

    windows: Sequence[Window]
    lengths: np.ndarray
    labeled: bool
    notes: tuple[str, ...]

    def batch(self, rows: np.ndarray, *, length: int) -> Batch:
        """Rows as int32 [B, length] `input_ids`, `attention_mask`, `token_type_ids`, and `labels` if there are any:
        of first pieces, and -1 elsewhere."""
        batch = {name: np.zeros((len(rows), length), np.int32) for name in ("input_ids", "attention_mask")}
        batch["token_type_ids"] = np.zeros((len(rows), length), np.int32)
        if self.labeled:
            batch["labels"] = np.full((len(rows), length), _NO_LABEL, np.int32)
        for place, window in enumerate(self.windows[row] for row in rows):
            batch["input_ids"][place, : len(window.ids)] = window.ids
            batch["attention_mask"][place, : len(window.ids)] = 1
            if window.labels is not None:
                batch["labels"][place, window.places] = window.labels
        return batch


def cut_windows(sizes: Sequence[int], budget: int) -> Iterator[tuple[range, range]]:
    """Words to read and words to answer, window by window; a word's size is its number of pieces.

    What is read has at most `budget` pieces, which no word has more of; every word is answered once. Up to a quarter
    of a window on either side is only read, but at the ends of the sentence.
    """
    first, margin = 0, budget // 4
    while first < len(sizes):
        start, pieces = first, 0
        while start > 0 and pieces + sizes[start - 1] <= min(margin, budget - sizes[first]):
            start -= 1
            pieces += sizes[start]
        stop = first
        while stop < len(sizes) and pieces + sizes[stop] <= budget:
            pieces += sizes[stop]
            stop += 1
        last, behind = stop, 0
        while stop < len(sizes) and last > first + 1 and behind + sizes[last - 1] <= margin:
            last -= 1
            behind += sizes[last]
        yield range(start, stop), range(first, last)
        first = last


def encode_sentences(
    sentences: Sequence[Sentence], tokenizer: WordTokenizer, *, max_length: int, notes: Sequence[str] = ()
) -> EncodedWords:
    """Tokenizes words into windows of at most `max_length` ids, `notes` and its own counts being its notes.

    As in the official task, a word that is not a sentence's first has a space in front: for SentencePiece it makes no
    difference, but byte-level BPE has other pieces then. transformers' `is_split_into_words` has it in front of all.

    Raises:
      ValueError: max_length leaves no room for a word, or no word of any sentence has pieces.
    """
    budget = max_length - 2
    if budget < 1:
        raise UserError(f"max_length is {max_length}; it must be at least 3, for a piece between [CLS] and [SEP]")
    words = [f"{' ' * (place > 0)}{word}" for sentence in sentences for place, word in enumerate(sentence.words)]
    pieces = iter(tokenizer.encode_batch(words) if words else ())
    windows, silent, cut, several = [], 0, 0, 0
    for number, sentence in enumerate(sentences):
        whole = [next(pieces) for _ in sentence.words]
        spoken = [place for place, ids in enumerate(whole) if ids]
        silent += len(whole) - len(spoken)
        cut += sum(len(ids) > budget for ids in whole)
        kept = [whole[place][:budget] for place in spoken]
        before = len(windows)
        for read, answered in cut_windows([len(ids) for ids in kept], budget):
            starts = 1 + np.cumsum([0, *(len(kept[place]) for place in read)])
            answers = np.array([spoken[place] for place in answered])
            windows.append(
                Window(
                    sentence=number,
                    ids=np.array([tokenizer.cls_id, *(i for p in read for i in kept[p]), tokenizer.sep_id], np.int32),
                    words=answers,
                    places=starts[np.array(answered) - read.start],
                    labels=None if sentence.labels is None else np.array(sentence.labels, np.int32)[answers],
                )
            )
        several += len(windows) - before > 1
    if not windows:
        raise UserError(f"none of the {len(words)} words has a piece in the tokenizer's vocabulary")
    counts = {
        f"{several} of {len(sentences)} sentences read in several windows of {max_length} tokens": several,
        f"{sum(not sentence.words for sentence in sentences)} empty sentences": any(not s.words for s in sentences),
        f"{silent} words without pieces, answered by O or the first label": silent,
        f"{cut} words cut to {budget} pieces": cut,
    }
    return EncodedWords(
        windows,
        np.array([len(window.ids) for window in windows], np.int32),
        sentences[0].labels is not None,
        (*notes, *(note for note, count in counts.items() if count)),
    )
