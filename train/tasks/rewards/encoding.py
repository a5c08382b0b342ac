"""Tokenizes pairs of answers for a reward model."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

from ..base import ExampleBatch
from ..classification.encoding import EncodedExamples, PairTokenizer, encode_examples
from ..classification.examples import Example
from ..on_demand import Mapped
from .examples import Preference


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPreferences:
    """The token ids of E pairs of answers. Implements `base.Encoded`.

    Attributes:
      chosen: the better answers.
      rejected: the worse answers.
      notes: messages to the user.
      labeled: always, as the order of the answers is the label.
    """

    chosen: EncodedExamples
    rejected: EncodedExamples
    notes: tuple[str, ...]
    labeled: bool = True

    @property
    def lengths(self) -> Int32[np.ndarray, "E"]:
        return np.maximum(self.chosen.lengths, self.rejected.lengths)

    def batch(self, indices: Int[np.ndarray, "B"], *, length: int) -> ExampleBatch:
        """Returns `input_ids`, `attention_mask` and `token_type_ids` [B, 2, length], the better answer first."""
        parts = [part.batch(indices, length=length) for part in (self.chosen, self.rejected)]
        return {name: np.stack([part[name] for part in parts], axis=1) for name in parts[0]}


def encode_preferences(
    examples: Sequence[Preference], tokenizer: PairTokenizer, *, max_length: int, notes: Sequence[str] = ()
) -> EncodedPreferences:
    """Returns the token ids of pairs of answers. `notes` about reading come first."""
    better = Mapped(lambda example: _after_prompt(example.prompt, example.chosen), examples)
    worse = Mapped(lambda example: _after_prompt(example.prompt, example.rejected), examples)
    chosen, rejected = (encode_examples(texts, tokenizer, max_length=max_length) for texts in (better, worse))
    equal = sum(np.array_equal(chosen.ids[index], rejected.ids[index]) for index in range(len(examples)))
    added = [f"{name}: {note}" for name, part in (("chosen", chosen), ("rejected", rejected)) for note in part.notes]
    if equal:
        added.append(
            f"{equal} with the same tokens for both answers, which teach nothing; a larger --max-length may show where "
            "they differ"
        )
    return EncodedPreferences(chosen, rejected, (*notes, *added))


def _after_prompt(prompt: str | None, answer: str) -> Example:
    """Returns an answer with the prompt before it, if there is one."""
    return Example(answer, None, None) if prompt is None else Example(prompt, answer, None)
