"""Predicts the tokens behind each [MASK] of a text with a masked language model."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax

from ..config import DebertaConfig
from ..errors import UserError
from ..models import DebertaForMaskedLM
from .loaded_model import LoadedModel
from .pipeline import Arrays, Pipeline, Row, RowOutputs, Rows

if TYPE_CHECKING:
    from .predictor import Predictor


@dataclasses.dataclass(frozen=True)
class TokenCandidate:
    """A token that may be behind a [MASK].

    Attributes:
      id: Its id.
      piece: Its form in the vocabulary, such as "▁Paris".
      probability: Softmax over the ids of the tokenizer; spare rows of the model's embedding table are excluded.
    """

    id: int
    piece: str
    probability: float


@dataclasses.dataclass(frozen=True)
class FillMask(Pipeline[str, list[list[TokenCandidate]]]):
    """Finds the most probable tokens for each [MASK] of a text, best first.

    Several masks are filled independently of each other.

    Attributes:
      vocab_size: Number of ids of the tokenizer.
      top_k: Number of tokens for each mask.

    Raises:
      UserError: `top_k` is out of range.
    """

    vocab_size: int
    top_k: int = 5

    heads: ClassVar[tuple[str, ...]] = ("mlm_head",)

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.vocab_size:
            raise UserError(f"top_k is {self.top_k}; it must be 1 to {self.vocab_size}, the size of the vocabulary")

    def model(self, config: DebertaConfig, **attributes: Any) -> DebertaForMaskedLM:
        return DebertaForMaskedLM(config, **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        probabilities = jax.nn.softmax(out.logits[..., : self.vocab_size])
        best, ids = jax.lax.top_k(probabilities, self.top_k)
        return {"probabilities": best, "ids": ids}

    def encode(self, model: LoadedModel, item: str) -> Rows[None]:
        encoding = model.tokenizer(item, parse_mask=True)
        masked = [i for i, token_id in enumerate(encoding.input_ids) if token_id == model.tokenizer.mask_id]
        if not masked:
            raise UserError(
                f"no [MASK] in {item!r}; write it where a token is to be predicted, as in 'Paris is [MASK].'"
            )
        return Rows([Row(encoding.input_ids, encoding.token_type_ids, masked)], None)

    def decode(
        self, model: LoadedModel, item: str, rows: Rows[None], outputs: Sequence[RowOutputs]
    ) -> list[list[TokenCandidate]]:
        (row,), (output,) = rows.rows, outputs
        masks = []
        for ids, probabilities in zip(output["ids"], output["probabilities"], strict=True):
            candidates = zip(ids, model.tokenizer.pieces(ids), probabilities, strict=True)
            masks.append([TokenCandidate(int(i), piece, float(probability)) for i, piece, probability in candidates])
        return masks[: len(row.masked_positions)]  # without padding


def fill_mask(model: "Predictor", text: str, *, top_k: int = 5) -> list[list[TokenCandidate]]:
    """Returns the `top_k` most probable tokens for each [MASK] of one text; see `FillMask`.

    Raises:
      UserError: The model has no masked LM head, the text has no [MASK], or `top_k` is out of range.
    """
    return model.fill_mask([text], top_k=top_k)[0]


def has_untrained_mlm_head(model: LoadedModel) -> bool:
    """Returns whether the model is an RTD discriminator, whose masked LM head was not trained with its encoder."""
    return "mlm_head" in model.params and "rtd_head" in model.params


def replace_mask(model: LoadedModel, text: str, candidate: TokenCandidate) -> str:
    """Returns the text with the candidate in place of every [MASK], as the tokenizer decodes it."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, parse_mask=True)
    return tokenizer.decode([candidate.id if token_id == tokenizer.mask_id else token_id for token_id in ids])
