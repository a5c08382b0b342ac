"""The search for answers in a context, for fine-tuning and for prediction: windows, the best spans, their texts."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..errors import UserError
from .tokenized_text import cut_windows, strip_span


@dataclasses.dataclass(frozen=True)
class SpanWindows:
    """The windows of a question over a context: `[CLS] question [SEP] part of the context [SEP]`.

    Source: BERT's run_squad.py (`doc_spans`). Deliberate difference: windows overlap by at least as many tokens as an
    answer may have, so that every answer is whole in one of them.

    Attributes:
      max_length: largest number of tokens per window.
      max_question_length: largest number of tokens of a question; longer ones are cut.
      doc_stride: tokens between the starts of two windows; less if they would not overlap by `max_answer_length`.
      max_answer_length: largest number of tokens of an answer.
    """

    max_length: int
    max_question_length: int
    doc_stride: int
    max_answer_length: int

    def check(self, separators: int) -> None:
        """Raises UserError if `max_length` leaves too little room for a context.

        Args:
          separators: number of [SEP] between a question and a context.
        """
        special = 2 + separators
        room = self.max_length - self.max_question_length - special
        if room <= self.max_answer_length:
            raise UserError(
                f"max_length {self.max_length} leaves {max(0, room)} tokens for the context, beside "
                f"max_question_length {self.max_question_length} and {special} special tokens; max_answer_length "
                f"{self.max_answer_length} needs more: raise max_length (384 is usual for SQuAD) or lower the others"
            )

    def context_start(self, question: int, separators: int) -> int:
        """Returns the position in the row at which the context begins.

        Args:
          question: number of tokens of the question, before it is cut.
          separators: as in `check`.
        """
        return min(question, self.max_question_length) + 1 + separators

    def cut(self, context: int, context_start: int) -> Iterator[tuple[int, int]]:
        """Yields the first token and the size of each window over a context of so many tokens; see `cut_windows`."""
        room = self.max_length - context_start - 1
        return cut_windows(context, room=room, stride=min(self.doc_stride, room - self.max_answer_length))


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


def distinct_texts(
    context: str, spans: Iterable[tuple[float, tuple[int, int]]], *, n_best: int
) -> tuple[SpanCandidate, ...]:
    """Returns the different texts of spans, each with its highest score, without texts that are only white space.

    Args:
      context: the context.
      spans: the score of each span, and the start and the end of its characters, in descending order of score; they
        are read until there are enough texts.
      n_best: largest number of texts.
    """
    candidates: dict[str, SpanCandidate] = {}
    for score, characters in spans:
        text, start = strip_span(context, *characters)
        if text and text not in candidates:
            candidates[text] = SpanCandidate(text, start, score)
        if len(candidates) == n_best:
            break
    return tuple(candidates.values())
