"""Documents in the order of their relevance to a query, by a reranker: a model of one logit for pairs."""

import dataclasses
from collections.abc import Sequence


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
