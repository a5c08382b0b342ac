"""Tokenizes the examples of classification, regression and ranking."""

import dataclasses
from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int32, Num

from deberta_jax.tokenizers.tokenizer import Encoding

from ..base import ExampleBatch
from ..ragged import Ragged, RaggedBuilder, as_numpy
from .examples import ClassificationData, Example


class PairTokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    def __call__(self, text: str, pair: str | None = None, *, max_length: int) -> Encoding: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedExamples:
    """The token ids of E examples. Implements `base.Encoded`.

    Attributes:
      ids: token ids of each example.
      second: position of the first token of type 1 in each example, or its length; all tokens after it have type 1.
        `None` if all tokens have type 0.
      labels: int32 class indices or float32 scores; `None` for unlabeled examples.
      notes: messages to the user.
      last_type: type of the last token of each example, where it has one of its own: 2 for the [CLS] of XLNet.
    """

    ids: Ragged
    second: Int32[np.ndarray, "E"] | None
    labels: Num[np.ndarray, "E"] | None
    notes: tuple[str, ...] = ()
    last_type: int | None = None

    @property
    def lengths(self) -> Int32[np.ndarray, "E"]:
        return self.ids.lengths

    @property
    def labeled(self) -> bool:
        return self.labels is not None

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns `input_ids`, `attention_mask` and `token_type_ids` [B, length], and `labels` [B] if there are any."""
        input_ids = np.zeros((len(indices), length), np.int32)
        for row, index in enumerate(indices.tolist()):
            ids = self.ids[index]
            input_ids[row, : len(ids)] = ids
        position = np.arange(length)
        is_token = position < self.lengths[indices, None]
        is_second = np.zeros_like(is_token) if self.second is None else position >= self.second[indices, None]
        types = (is_token & is_second).astype(np.int32)
        if self.last_type is not None:
            types[np.arange(len(indices)), self.lengths[indices] - 1] = self.last_type
        batch = {"input_ids": input_ids, "attention_mask": is_token.astype(np.int32), "token_type_ids": types}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}


def encode_examples(
    examples: Sequence[Example], tokenizer: PairTokenizer, *, max_length: int, notes: Sequence[str] = ()
) -> EncodedExamples:
    """Returns the token ids of examples, of which either all or none have labels. `notes` about reading come first."""
    ids, second, truncated = RaggedBuilder(), array("i"), 0
    has_pairs = examples[0].pair is not None  # as the others, because the column is the same
    labels = array("f" if isinstance(examples[0].label, float) else "i")
    last_type = None
    for example in examples:
        encoding = tokenizer(example.text, example.pair, max_length=max_length + 1)
        if len(encoding.input_ids) > max_length:
            truncated += 1
            encoding = tokenizer(example.text, example.pair, max_length=max_length)
        ids.append(encoding.input_ids)
        if has_pairs:
            second.append(encoding.token_type_ids.count(0))
        if encoding.token_type_ids[-1:] == [2]:
            last_type = 2
        if example.label is not None:
            labels.append(example.label)
    return EncodedExamples(
        ids.build(),
        as_numpy(second) if second else None,
        as_numpy(labels) if labels else None,
        (*notes, *((f"{truncated} cut to {max_length} tokens",) if truncated else ())),
        last_type,
    )


def encode_splits(data: ClassificationData, tokenizer: PairTokenizer, *, max_length: int) -> dict[str, EncodedExamples]:
    """Returns the token ids of the examples of a task by split."""
    return {
        name: encode_examples(examples, tokenizer, max_length=max_length, notes=data.notes[name])
        for name, examples in data.splits.items()
    }
