"""Documents in the order of their relevance to a query, by a reranker: a model of one logit for pairs."""

import dataclasses
from collections.abc import Sequence

from ..errors import UserError
from .checks import check_at_least_one
from .classification import ScoreTexts, TextLogits
from .loaded_model import LoadedModel
from .pipeline import RowOutputs, Rows, TextPair
from .windows import Windows


@dataclasses.dataclass(frozen=True)
class RankedDocument:
    """A document and its place among those that were given.

    Attributes:
      index: Its number among the documents, from 0.
      score: Its score; see `ScoreTexts`.
      text: The document.
    """

    index: int
    score: float
    text: str


def ranked(documents: Sequence[str], scores: Sequence[float], *, top_k: int | None = None) -> list[RankedDocument]:
    """Returns the documents, those with the highest scores first; of equal scores the earlier document.

    Args:
      documents: The documents.
      scores: As many scores.
      top_k: Number of documents in the result (default: all).
    """
    order = sorted(range(len(documents)), key=lambda index: -scores[index])
    return [RankedDocument(index, scores[index], documents[index]) for index in order[:top_k]]


@dataclasses.dataclass(frozen=True)
class QueryAndDocuments:
    """A query, and the documents that are ordered for it."""

    query: str
    documents: Sequence[str]


@dataclasses.dataclass(frozen=True)
class RankDocuments(TextLogits[QueryAndDocuments, list[RankedDocument]]):
    """Orders the documents of a query, each query with documents of its own.

    Attributes:
      windows: What happens to long documents; by default, the score of a document is that of its best window.
      raw: As `ScoreTexts`.
      top_k: Number of documents in the result (default: all).

    Raises:
      UserError: `top_k` is below 1.
    """

    windows: Windows = Windows(combine="max")
    raw: bool | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_at_least_one(top_k=self.top_k)

    def check(self, model: LoadedModel) -> None:
        self.scores.check(model)

    def encode(self, model: LoadedModel, item: QueryAndDocuments) -> Rows[list[Rows[None]]]:
        if not item.documents:
            raise UserError("there are no documents to order")
        of_documents = [self.scores.encode(model, TextPair(item.query, text)) for text in item.documents]
        return Rows([row for rows in of_documents for row in rows.rows], of_documents)

    def decode(
        self,
        model: LoadedModel,
        item: QueryAndDocuments,
        rows: Rows[list[Rows[None]]],
        outputs: Sequence[RowOutputs],
    ) -> list[RankedDocument]:
        scores, start = [], 0
        for text, own in zip(item.documents, rows.context, strict=True):
            end = start + len(own.rows)
            scores.append(self.scores.decode(model, TextPair(item.query, text), own, outputs[start:end]))
            start = end
        return ranked(item.documents, scores, top_k=self.top_k)

    @property
    def scores(self) -> ScoreTexts:
        """The pipeline that scores each query with one of its documents."""
        return ScoreTexts(self.windows, self.raw)
