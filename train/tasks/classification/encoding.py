"""Tokenizes the examples of classification and regression."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int32, Num

from deberta_jax.tokenizers.tokenizer import Encoding

from ..base import ExampleBatch
from .examples import Example


class PairTokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    def __call__(self, text: str, pair: str | None = None, *, max_length: int) -> Encoding: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedExamples:
    """The token ids of E examples, padded with 0 to S = `max_length` tokens. Implements `base.Encoded`.

    Attributes:
      input_ids: token ids.
      token_type_ids: token types.
      lengths: number of tokens of each example.
      labels: int32 class indices or float32 scores; `None` for unlabeled examples.
      truncated: number of examples that were longer than S.
      reading_notes: messages to the user about reading the examples.
    """

    input_ids: Int32[np.ndarray, "E S"]
    token_type_ids: Int32[np.ndarray, "E S"]
    lengths: Int32[np.ndarray, "E"]
    labels: Num[np.ndarray, "E"] | None
    truncated: int
    reading_notes: tuple[str, ...] = ()

    @property
    def labeled(self) -> bool:
        return self.labels is not None

    @property
    def notes(self) -> tuple[str, ...]:
        cut = (f"{self.truncated} cut to {self.input_ids.shape[1]} tokens",) if self.truncated else ()
        return (*self.reading_notes, *cut)

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns `input_ids`, `attention_mask` and `token_type_ids` [B, length], and `labels` [B] if there are any."""
        is_token = np.arange(length) < self.lengths[indices, None]
        batch = {
            "input_ids": self.input_ids[indices, :length],
            "attention_mask": is_token.astype(np.int32),
            "token_type_ids": self.token_type_ids[indices, :length],
        }
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}


def encode_examples(
    examples: Sequence[Example], tokenizer: PairTokenizer, *, max_length: int, notes: Sequence[str] = ()
) -> EncodedExamples:
    """Returns the token ids of examples, of which either all or none have labels."""
    input_ids = np.zeros((len(examples), max_length), np.int32)
    token_type_ids = np.zeros_like(input_ids)
    lengths = np.zeros(len(examples), np.int32)
    truncated = 0
    for index, example in enumerate(examples):
        encoding = tokenizer(example.text, example.pair, max_length=max_length)
        length = lengths[index] = len(encoding.input_ids)
        input_ids[index, :length] = encoding.input_ids
        token_type_ids[index, :length] = encoding.token_type_ids
        if length == max_length:  # the example was truncated or fits exactly; a second call tells which
            longer = tokenizer(example.text, example.pair, max_length=max_length + 1)
            truncated += len(longer.input_ids) > max_length
    labels = None
    if all(example.label is not None for example in examples):
        is_score = isinstance(examples[0].label, float)
        labels = np.array([example.label for example in examples], np.float32 if is_score else np.int32)
    return EncodedExamples(input_ids, token_type_ids, lengths, labels, truncated, tuple(notes))
