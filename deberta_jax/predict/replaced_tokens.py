"""Predicts which tokens of a text were replaced, with the discriminator of replaced token detection."""

import dataclasses

import jax
import numpy as np

from ..errors import UserError
from ..models import DebertaForReplacedTokenDetection
from .loaded_model import LoadedModel


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """One token of a text and how likely it is that it was replaced.

    Attributes:
      piece: Its form in the vocabulary, such as "▁Paris".
      start: Position of its first character in the text.
      end: Position after its last character.
      probability: The probability, 0 to 1, that another token was in its place.
    """

    piece: str
    start: int
    end: int
    probability: float


def score_replaced_tokens(model: LoadedModel, text: str) -> list[TokenScore]:
    """Returns a score for each token of a text, without [CLS] and [SEP].

    Raises:
      UserError: The model has no replaced token head, or the text has no tokens.
    """
    encoding = model.tokenizer(text, return_offsets=True)
    ids = np.array([encoding.input_ids])
    if ids.size <= 2:  # only [CLS] and [SEP]
        raise UserError(f"the text {text!r} has no tokens; give one with words in it")
    output = model.run_head("rtd_head", DebertaForReplacedTokenDetection, ids)
    probabilities = np.asarray(jax.nn.sigmoid(output.logits[0]))
    pieces = model.tokenizer.pieces(ids[0])
    return [
        TokenScore(piece, *offset, float(probability))
        for piece, offset, probability in zip(pieces, encoding.offsets or (), probabilities, strict=True)
        if offset is not None  # special tokens have no offsets
    ]
