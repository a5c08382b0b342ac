"""Tokenizes the examples of multi-label classification."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from ..base import ExampleBatch
from ..classification.encoding import EncodedExamples, PairTokenizer, encode_examples
from ..classification.examples import Example
from ..on_demand import Mapped
from ..ragged import Ragged
from .examples import MultilabelExample


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedLabels:
    """The token ids of E examples, each with any number of C classes. Implements `base.Encoded`.

    Attributes:
      texts: the token ids.
      classes: the indices of the classes of each example; `None` for unlabeled examples.
      size: the number of classes.
    """

    texts: EncodedExamples
    classes: Ragged | None
    size: int

    @property
    def lengths(self) -> Int32[np.ndarray, "E"]:
        return self.texts.lengths

    @property
    def labeled(self) -> bool:
        return self.classes is not None

    @property
    def notes(self) -> tuple[str, ...]:
        return self.texts.notes

    def targets(self, indices: Int[np.ndarray, "B"]) -> Bool[np.ndarray, "B C"]:
        """Returns whether each of these examples has each class."""
        if self.classes is None:
            raise ValueError("these examples have no labels")
        targets = np.zeros((len(indices), self.size), bool)
        for row, index in enumerate(indices.tolist()):
            targets[row, self.classes[index]] = True
        return targets

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns `input_ids`, `attention_mask` and `token_type_ids` [B, length].

        If there are labels, they are `labels` [B, C], float32, 1 for each class of an example.
        """
        batch = self.texts.batch(indices, length=length)
        return batch if self.classes is None else batch | {"labels": self.targets(indices).astype(np.float32)}


def encode_labels(
    examples: Sequence[MultilabelExample],
    tokenizer: PairTokenizer,
    *,
    classes: int,
    max_length: int,
    notes: Sequence[str] = (),
) -> EncodedLabels:
    """Returns the token ids of examples, of which either all or none have labels. `notes` about reading come first."""
    texts = encode_examples(Mapped(_without_labels, examples), tokenizer, max_length=max_length, notes=notes)
    labeled = examples[0].labels is not None  # as the others
    labels = Ragged.of(example.labels or () for example in examples) if labeled else None
    return EncodedLabels(texts, labels, classes)


def _without_labels(example: MultilabelExample) -> Example:
    return Example(example.text, example.pair, None)
