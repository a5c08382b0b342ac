"""Predicts the tokens behind each [MASK] of a text with a masked language model."""

import dataclasses

import jax
import numpy as np

from ..errors import UserError
from ..models import DebertaForMaskedLM
from .loaded_model import LoadedModel


@dataclasses.dataclass(frozen=True)
class TokenCandidate:
    """One token that may stand behind a [MASK].

    Attributes:
      id: Its id.
      piece: Its form in the vocabulary, such as "▁Paris".
      probability: Softmax over the ids of the tokenizer; spare rows of the model's embedding table are excluded.
    """

    id: int
    piece: str
    probability: float


def fill_mask(model: LoadedModel, text: str, *, top_k: int = 5) -> list[list[TokenCandidate]]:
    """Returns the `top_k` most probable tokens for each [MASK] of a text, best first.

    Several masks are filled independently of each other.

    Raises:
      UserError: The model has no masked LM head, the text has no [MASK], or `top_k` is out of range.
    """
    tokenizer = model.tokenizer
    if not 1 <= top_k <= tokenizer.vocab_size:
        raise UserError(f"top_k is {top_k}; it must be 1 to {tokenizer.vocab_size}, the size of the vocabulary")
    ids = np.array([tokenizer(text, parse_mask=True).input_ids])
    masked_positions = np.flatnonzero(ids[0] == tokenizer.mask_id)
    if not masked_positions.size:
        raise UserError(f"no [MASK] in {text!r}; write it where a token is to be predicted, as in 'Paris is [MASK].'")
    output = model.run_head("mlm_head", DebertaForMaskedLM, ids, masked_positions=masked_positions[None])
    probabilities, best_ids = jax.lax.top_k(jax.nn.softmax(output.logits[0, :, : tokenizer.vocab_size]), top_k)
    return [
        [
            TokenCandidate(int(token_id), piece, float(probability))
            for token_id, piece, probability in zip(
                mask_ids, tokenizer.pieces(mask_ids), mask_probabilities, strict=True
            )
        ]
        for mask_ids, mask_probabilities in zip(np.asarray(best_ids), np.asarray(probabilities), strict=True)
    ]


def has_untrained_mlm_head(model: LoadedModel) -> bool:
    """Returns whether the model is an RTD discriminator, whose masked LM head was not trained with its encoder."""
    return "mlm_head" in model.params and "rtd_head" in model.params


def replace_mask(model: LoadedModel, text: str, candidate: TokenCandidate) -> str:
    """Returns the text with the candidate in place of every [MASK], as the tokenizer decodes it."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, parse_mask=True)
    return tokenizer.decode([candidate.id if token_id == tokenizer.mask_id else token_id for token_id in ids])
