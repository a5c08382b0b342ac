"""Finds the answers to questions in the logits of their windows: the best spans of each row, then of all rows."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...engine.divergence import TrainingError
from ..base import Predictions
from .questions import SpanQuestion
from .windows import Windows

_CERTAIN = 1e9  # above any difference of logits, and unlike infinity a number in JSON


class BestSpans(NamedTuple):
    """The spans of each row with the highest scores, in descending order.

    A score of -inf marks that a row has no further span.
    """

    starts: Int[Array, "B spans"]
    ends: Int[Array, "B spans"]
    scores: Float[Array, "B spans"]


def best_spans(
    start_logits: Float[Array, "B S"],
    end_logits: Float[Array, "B S"],
    is_context: Bool[Array, "B S"],
    *,
    n_best: int,
    max_answer_length: int,
) -> BestSpans:
    """Returns the spans with the highest sum of both logits among all spans of each row.

    Deliberate difference: BERT's run_squad.py only considers the pairs of the n best starts and the n best ends, of
    which some are not spans.

    Args:
      start_logits: logits of the first token of a span.
      end_logits: logits of the last token of a span.
      is_context: which tokens belong to the context, as a single range.
      n_best: number of spans to return, at most S times `max_answer_length`.
      max_answer_length: largest number of tokens in a span.
    """
    B, S = start_logits.shape
    reach = min(max_answer_length, S)
    starts = jnp.where(is_context, start_logits, -jnp.inf)
    ends = jnp.where(is_context, end_logits, -jnp.inf)
    ends = jnp.pad(ends, ((0, 0), (0, reach - 1)), constant_values=-jnp.inf)
    # scores[b, s, n] is the score of the span from token s to token s + n. A span between two tokens of the context
    # has no token outside it, because the context is a single range.
    scores = starts[..., None] + jnp.stack([ends[:, n : n + S] for n in range(reach)], axis=-1)
    scores, flat_indices = jax.lax.top_k(scores.reshape(B, -1), min(n_best, S * reach))
    first = flat_indices // reach
    return BestSpans(starts=first, ends=first + flat_indices % reach, scores=scores)


@dataclasses.dataclass(frozen=True, slots=True)
class SpanCandidate:
    """A possible answer.

    Attributes:
      text: a text of the context.
      start: position of its first character.
      score: sum of the logits of its first and last token.
    """

    text: str
    start: int
    score: float


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
    """Returns the different texts of spans in descending order of score, without texts that are only white space."""
    candidates: dict[str, SpanCandidate] = {}
    for span in sorted(spans, key=lambda span: -span.score):
        if len(candidates) == n_best:
            break
        start, end = windows.characters(span.row, span.first, span.last)
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        if text and text not in candidates:
            candidates[text] = SpanCandidate(text, start, span.score)
    return tuple(candidates.values())
