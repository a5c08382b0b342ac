"""From the logits of windows to the answer to a question: the best spans of each row, then of all its rows."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import UserError

from ..base import Found
from .questions import Question
from .windows import Windows

_CERTAIN = 1e9  # above any difference of logits, and a number in JSON, which inf is not


def best_spans(
    start_logits: jax.Array, end_logits: jax.Array, inside: jax.Array, *, n_best: int, max_answer_length: int
) -> dict[str, jax.Array]:
    """The spans of each row with the highest sum of both logits, of all that there are.

    BERT's run_squad.py looks only at pairs of the n best starts and the n best ends, some of which are no spans.

    Args:
      start_logits, end_logits: float32 [B, S]. inside: [B, S], nonzero for tokens of the context.

    Returns:
      `starts`, `ends` int32 and `scores` float32, all [B, N], best first, N being n_best or what a row can have
      at most; a score of -inf is no span.
    """
    batch, length = start_logits.shape
    reach = min(max_answer_length, length)
    starts = jnp.where(inside != 0, start_logits, -jnp.inf)
    ends = jnp.where(inside != 0, end_logits, -jnp.inf)
    ends = jnp.pad(ends, ((0, 0), (0, reach - 1)), constant_values=-jnp.inf)
    # scores[b, s, n]: of the span from token s to token s + n. The context is in one piece: nothing lies between.
    scores = starts[..., None] + jnp.stack([ends[:, n : n + length] for n in range(reach)], axis=-1)
    scores, places = jax.lax.top_k(scores.reshape(batch, -1), min(n_best, length * reach))
    first = places // reach
    return {"starts": first, "ends": first + places % reach, "scores": scores}


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A text of the context from character `start` on, and the sum of the logits of its first and last token."""

    text: str
    start: int
    score: float


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """`candidates`: different texts, best first. `null_score`: of "no answer", in the window that doubts it most."""

    candidates: tuple[Candidate, ...]
    null_score: float

    @property
    def no_answer(self) -> float:
        """How far the score of "no answer" is above that of the best text; very far where there is no text."""
        return self.null_score - self.candidates[0].score if self.candidates else _CERTAIN


def predictions(questions: Sequence[Question], windows: Windows, found: Found, *, n_best: int) -> list[Prediction]:
    """What the model answers to every question, from `best_spans` of its windows.

    A text that is found more than once, in one window or in several, has its highest score. Deliberate difference:
    BERT's run_squad.py takes a span only from the window in which its first token has the most context, so that one
    which this window cuts off cannot be found at all.

    Args:
      found: of every window `starts`, `ends`, `scores` [N], `null_score` and `finite`.

    Raises:
      ValueError: a logit is not finite.
    """
    spans: list[list[tuple[float, int, int, int]]] = [[] for _ in questions]
    null_scores = [math.inf] * len(questions)
    for row, (owner, one) in enumerate(zip(windows.owner, found, strict=True)):
        if not one["finite"]:
            raise UserError(f"the logits of window {row} are not finite; the model has diverged")
        null_scores[owner] = min(null_scores[owner], float(one["null_score"]))
        for score, first, last in zip(one["scores"], one["starts"], one["ends"], strict=True):
            if np.isfinite(score):
                spans[owner].append((float(score), row, int(first), int(last)))
    return [
        Prediction(_candidates(question.context, windows, sorted(rows, key=lambda span: -span[0]), n_best), null_score)
        for question, rows, null_score in zip(questions, spans, null_scores, strict=True)
    ]


def _candidates(
    context: str, windows: Windows, spans: Sequence[tuple[float, int, int, int]], n_best: int
) -> tuple[Candidate, ...]:
    """Different texts of spans, in their order. Spans of white space alone are no answers."""
    chosen: dict[str, Candidate] = {}
    for score, row, first, last in spans:
        if len(chosen) == n_best:
            break
        start, end = windows.characters(row, first, last)
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        if text and text not in chosen:
            chosen[text] = Candidate(text, start, score)
    return tuple(chosen.values())
