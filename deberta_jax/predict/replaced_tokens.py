"""Predicts which tokens of a text were replaced, with the discriminator of replaced token detection."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax

from ..config import DebertaConfig
from ..errors import UserError
from ..models import DebertaForReplacedTokenDetection
from ..tokenizers.vocabulary import Offset
from .classification import sigmoid
from .loaded_model import LoadedModel
from .pipeline import Arrays, Pipeline, Row, RowOutputs, Rows

if TYPE_CHECKING:
    from .predictor import Predictor


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


@dataclasses.dataclass(frozen=True)
class DetectReplacedTokens(Pipeline[str, list[TokenScore]]):
    """Scores each token of a text, without [CLS] and [SEP]."""

    heads: ClassVar[tuple[str, ...]] = ("rtd_head",)

    def model(self, config: DebertaConfig, **attributes: Any) -> DebertaForReplacedTokenDetection:
        return DebertaForReplacedTokenDetection(config, **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        return {"logits": out.logits}

    def encode(self, model: LoadedModel, item: str) -> Rows[Sequence[Offset | None]]:
        encoding = model.tokenizer(item, return_offsets=True)
        if len(encoding.input_ids) <= 2:  # only [CLS] and [SEP]
            raise UserError(f"the text {item!r} has no tokens; give one with words in it")
        return Rows([Row(encoding.input_ids, encoding.token_type_ids)], encoding.offsets or ())

    def decode(
        self, model: LoadedModel, item: str, rows: Rows[Sequence[Offset | None]], outputs: Sequence[RowOutputs]
    ) -> list[TokenScore]:
        pieces = model.tokenizer.pieces(rows.rows[0].input_ids)
        probabilities = sigmoid(outputs[0]["logits"])
        return [
            TokenScore(piece, *offset, float(probability))
            for piece, offset, probability in zip(pieces, rows.context, probabilities, strict=True)
            if offset is not None  # special tokens have no offsets
        ]


def score_replaced_tokens(model: "Predictor", text: str) -> list[TokenScore]:
    """Returns a score for each token of one text, without [CLS] and [SEP].

    Raises:
      UserError: The model has no replaced token head, or the text has no tokens.
    """
    return model.replaced_tokens([text])[0]
