"""Finds the answers to questions in the best spans of their windows."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deberta_jax.predict.span_search import SpanCandidate, distinct_texts

from ...engine.divergence import TrainingError
from ..base import Predictions
from .questions import SpanQuestion
from .windows import Windows

_CERTAIN = 1e9  # above any difference of logits, and unlike infinity a number in JSON


@dataclasses.dataclass(frozen=True, slots=True)
class SpanPrediction:
    """The prediction for a question.

    Attributes:
      candidates: different texts, in descending order of their scores.
      null_score: the minimum of the "no answer" score over all windows.
    """

    candidates: tuple[SpanCandidate, ...]
    null_score: float

    @property
    def no_answer(self) -> float:
        """The difference between the scores of "no answer" and the best text; very high if there is no text."""
        return self.null_score - self.candidates[0].score if self.candidates else _CERTAIN


def combine_windows(
    questions: Sequence[SpanQuestion], windows: Windows, predictions: Predictions, *, n_best: int
) -> Iterator[SpanPrediction]:
    """Yields the prediction for each question from the best spans of its windows.

    A text that occurs in several spans has its highest score. Deliberate difference: BERT's run_squad.py only accepts a
    span from the window in which its first token has the most context, so that a span that this window cuts off is
    never found.

    Args:
      questions: the questions of a split.
      windows: the windows of these questions.
      predictions: for each window, the fields of `BestSpans`, `null_score` and `finite`.
      n_best: largest number of candidates per question.

    Raises:
      TrainingError: if a logit is not finite.
    """
    rows = itertools.groupby(enumerate(zip(windows.owner.tolist(), predictions, strict=True)), lambda row: row[1][0])
    for question, (_, rows_of_question) in zip(questions, rows, strict=True):  # a question has at least one window
        spans: list[_WindowSpan] = []
        null_score = math.inf
        for row, (_, prediction) in rows_of_question:
            if not prediction["finite"]:
                raise TrainingError(f"the logits of window {row} are not finite; the model has diverged")
            null_score = min(null_score, float(prediction["null_score"]))
            for score, first, last in zip(prediction["scores"], prediction["starts"], prediction["ends"], strict=True):
                if np.isfinite(score):
                    spans.append(_WindowSpan(float(score), row, int(first), int(last)))
        yield SpanPrediction(_candidates(question.context, windows, spans, n_best), null_score)


class _WindowSpan(NamedTuple):
    score: float
    row: int
    first: int
    last: int


def _candidates(context: str, windows: Windows, spans: Sequence[_WindowSpan], n_best: int) -> tuple[SpanCandidate, ...]:
    """Returns the different texts of spans in descending order of score."""
    ordered = sorted(spans, key=lambda span: -span.score)
    characters = ((span.score, windows.characters(span.row, span.first, span.last)) for span in ordered)
    return distinct_texts(context, characters, n_best=n_best)
