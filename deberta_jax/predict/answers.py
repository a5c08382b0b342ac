"""Answers to questions: the parts of a context, of any length, that a model finds."""

import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Shaped

from ..config import DebertaConfig
from ..errors import UserError
from ..models import DebertaForQuestionAnswering
from .checks import check_at_least_one, check_one_of
from .loaded_model import LoadedModel
from .pipeline import Arrays, Pipeline, Row, RowOutputs, Rows
from .span_search import SpanCandidate, SpanWindows, best_spans, distinct_texts
from .tokenized_text import check_nonblank, strip_span, tokenize
from .windows import Windows

Softmax = Literal["document", "window"]

_SPANS = 20  # of each window that are compared, as `finetune` does by default
_MAX_LENGTH = 384
_FIELDS = ("starts", "ends", "scores", "exists")  # of the best spans of a window


@dataclasses.dataclass(frozen=True)
class QuestionAndContext:
    """A question, and the text that has the answer."""

    question: str
    context: str


@dataclasses.dataclass(frozen=True)
class AnswerCandidate:
    """A possible answer: `context[start:end]`, or an empty text for "no answer".

    Attributes:
      text: The text.
      start: Position of its first character in the context.
      end: Position after its last character.
      score: See `AnswerQuestions`.
    """

    text: str
    start: int
    end: int
    score: float


@dataclasses.dataclass(frozen=True)
class Answer(AnswerCandidate):
    """The answer to a question, which is the candidate that was chosen.

    Attributes:
      no_answer_score: The score of "no answer".
      candidates: The answer and the next best ones; "no answer" is among them if it is allowed.
      windows: Number of windows that the context was read in.
      notes: What was left out of the model's input, if anything.
    """

    no_answer_score: float
    candidates: tuple[AnswerCandidate, ...]
    windows: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Context:
    """Where the context begins in the rows, the first token of each window, and the characters of the tokens."""

    begin: int
    firsts: Sequence[int]
    offsets: Int32[np.ndarray, "tokens 2"]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AnswerQuestions(Pipeline[QuestionAndContext, Answer]):
    """Finds the parts of a context that answer a question.

    The score of an answer is the product of two probabilities, that it starts and that it ends where it does, by a
    softmax over [CLS], which means "no answer", and the tokens of the context. For a context of one window these are
    the scores of transformers' pipeline "question-answering" (which ended with version 4, there with
    `align_to_words=False`). For a longer one there are two rules:

        softmax="document"   one softmax over all windows, so that answers are compared by their logits. The answer is
                             the one that `finetune` predicts with the same lengths. A text that occurs in several spans
                             has its highest score.
        softmax="window"     a softmax over each window, and the scores of a text in several spans are added, as in
                             transformers. The score of "no answer" is the lowest of all windows.

    Deliberate difference: "document" is the default. It is the rule by which `finetune` chooses checkpoints and
    thresholds, and scores of different windows cannot be compared after a softmax over each. An answer is never widened
    to whole words, which would add the punctuation after it, and has no white space around it.

    Attributes:
      top_k: Number of candidates.
      no_answer: Whether "no answer" is possible, as for models that were trained on SQuAD 2.0.
      null_threshold: "No answer" is chosen if the difference of its logits to those of the best span is above this, as
        with `--null-threshold` of `finetune`, which reports the best threshold.
      max_length: Largest number of tokens of a window (default: 384, or the number of absolute positions of a model
        that reads them).
      max_question_length: Largest number of tokens of a question; longer ones are cut, and `Answer.notes` says so.
      stride: Tokens between the starts of two windows; less where windows would not overlap by `max_answer_length`.
      max_answer_length: Largest number of tokens of an answer.
      softmax: See above.

    Raises:
      UserError: A value is out of range.
    """

    heads: ClassVar[tuple[str, ...]] = ("span_classifier",)
    top_k: int = 1
    no_answer: bool = False
    null_threshold: float = 0.0
    max_length: int | None = None
    max_question_length: int = 64
    stride: int = 128
    max_answer_length: int = 30
    softmax: Softmax = "document"

    def __post_init__(self) -> None:
        Windows(self.max_length)  # checks it
        check_at_least_one(
            top_k=self.top_k,
            max_question_length=self.max_question_length,
            stride=self.stride,
            max_answer_length=self.max_answer_length,
        )
        if not math.isfinite(self.null_threshold):
            raise UserError(f"null_threshold is {self.null_threshold}; it must be a finite number")
        check_one_of("softmax", self.softmax, get_args(Softmax))

    @property
    def _spans_per_window(self) -> int:
        """Number of spans of each window that are compared."""
        return self.top_k if self.softmax == "window" else max(self.top_k, _SPANS)

    def traced_settings(self) -> Hashable:
        return AnswerQuestions, self._spans_per_window, self.max_answer_length

    def model(self, config: DebertaConfig, **attributes: Any) -> DebertaForQuestionAnswering:
        return DebertaForQuestionAnswering(config, **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        is_context, cls_position = _layout(batch)
        spans = best_spans(
            out.start_logits,
            out.end_logits,
            is_context,
            n_best=self._spans_per_window,
            max_answer_length=self.max_answer_length,
        )
        exists = ~jnp.isneginf(spans.scores)
        missing = ((0, 0), (0, self._spans_per_window - spans.scores.shape[1]))  # in short rows
        choosable = is_context | (jnp.arange(is_context.shape[1]) == cls_position)
        return {
            "starts": jnp.pad(spans.starts, missing),
            "ends": jnp.pad(spans.ends, missing),
            "scores": jnp.pad(jnp.where(exists, spans.scores, 0), missing),
            "exists": jnp.pad(exists, missing),
            "null_score": _at(out.start_logits, cls_position) + _at(out.end_logits, cls_position),
            "start_total": jax.nn.logsumexp(out.start_logits, axis=1, where=choosable, keepdims=True),
            "end_total": jax.nn.logsumexp(out.end_logits, axis=1, where=choosable, keepdims=True),
        }

    def encode(self, model: LoadedModel, item: QuestionAndContext) -> Rows[_Context]:
        check_nonblank(item.question, "the question")
        check_nonblank(item.context, "the context")
        tokenizer = model.tokenizer
        sizes = SpanWindows(
            Windows(self.max_length).length(model, default=_MAX_LENGTH),
            self.max_question_length,
            self.stride,
            self.max_answer_length,
        )
        sizes.check(tokenizer.pair_separators)
        question, context = tokenizer.encode(item.question), tokenize(tokenizer, item.context)
        if not len(context.ids):
            raise UserError(f"the context {item.context!r:.60} has no tokens; give one with words in it")
        beside = sizes.beside(len(question), tokenizer.pair_separators)
        rows, firsts = [], []
        for first, size in sizes.cut(len(context.ids), beside):
            texts = question[: self.max_question_length], context.ids[first : first + size]
            rows.append(Row(*tokenizer.with_special_tokens(*(texts[::-1] if tokenizer.cls_last else texts))))
            firsts.append(first)
        was_cut = len(question) > self.max_question_length
        notes = (f"the question was cut to {self.max_question_length} of its {len(question)} tokens",) * was_cut
        begin = 0 if tokenizer.cls_last else beside - 1
        return Rows(rows, _Context(begin, firsts, context.offsets, notes))

    def decode(
        self, model: LoadedModel, item: QuestionAndContext, rows: Rows[_Context], outputs: Sequence[RowOutputs]
    ) -> Answer:
        totals = [output["start_total"].item() + output["end_total"].item() for output in outputs]
        nulls = [output["null_score"].item() for output in outputs]
        if self.softmax == "document":
            ends = [np.array([output[name].item() for output in outputs]) for name in ("start_total", "end_total")]
            total = float(sum(np.logaddexp.reduce(end) for end in ends))
            windows = zip(rows.context.firsts, outputs, strict=True)
            spans = [span for first, output in windows for span in _spans(rows.context, first, output)]
            found = distinct_texts(item.context, sorted(spans, key=lambda span: -span[0]), n_best=self.top_k)
            scored = [_candidate(span, math.exp(span.score - total)) for span in found]
            null, margin = min(nulls), min(nulls) - found[0].score if found else math.inf
            null_score = math.exp(null - total)
        else:
            scored = _added(item.context, rows.context, outputs, totals)[: self.top_k]
            null_score = math.exp(min(null - total for null, total in zip(nulls, totals, strict=True)))
            margin = _log(null_score) - _log(scored[0].score) if scored else math.inf
        none = AnswerCandidate("", 0, 0, null_score)
        is_none = not scored or (self.no_answer and margin > self.null_threshold)
        chosen = none if is_none else scored[0]
        allowed = [*scored, none] if self.no_answer or is_none else scored
        others = sorted((one for one in allowed if one is not chosen), key=lambda one: -one.score)
        return Answer(
            **dataclasses.asdict(chosen),
            no_answer_score=null_score,
            candidates=(chosen, *others)[: self.top_k],
            windows=len(outputs),
            notes=rows.context.notes,
        )


def _layout(batch: Arrays) -> tuple[Bool[Array, "B S"], Int[Array, "B 1"]]:
    """Returns which tokens belong to the context, without the [SEP] around it, and the position of [CLS].

    Rows are `[CLS] question [SEP] context [SEP]`, the context having type 1, or XLNet's `context [SEP] question [SEP]
    [CLS]`, with the types 0, 1 and, of [CLS], 2.
    """
    ids, types, is_real = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"] != 0
    last = is_real.sum(axis=1, keepdims=True) - 1
    cls_last = _at(types, last) == 2
    is_separator = ids == _at(ids, jnp.where(cls_last, last - 1, last))
    is_context = is_real & (types == jnp.where(cls_last, 0, 1)) & ~is_separator
    return is_context, jnp.where(cls_last, last, 0)


def _at(values: Shaped[Array, "B S"], position: Int[Array, "B 1"]) -> Shaped[Array, "B 1"]:
    return jnp.take_along_axis(values, position, axis=1)


def _spans(context: _Context, first: int, output: RowOutputs) -> Iterator[tuple[float, tuple[int, int]]]:
    """Yields the score and the characters of the best spans of a window, whose first token is `first`."""
    shift = first - context.begin
    for start, end, score, exists in zip(*(output[name].tolist() for name in _FIELDS), strict=True):
        if exists:
            yield score, (int(context.offsets[start + shift, 0]), int(context.offsets[end + shift, 1]))


def _candidate(span: SpanCandidate, score: float) -> AnswerCandidate:
    return AnswerCandidate(span.text, span.start, span.start + len(span.text), score)


def _added(
    text: str, context: _Context, outputs: Sequence[RowOutputs], totals: Sequence[float]
) -> list[AnswerCandidate]:
    """Returns the texts of the spans in descending order, with the sum of their scores over all spans.

    Source: `get_answer` of transformers' `QuestionAnsweringPipeline`, for which capitals make no difference.
    """
    found: dict[str, AnswerCandidate] = {}
    for first, output, total in zip(context.firsts, outputs, totals, strict=True):
        for score, characters in _spans(context, first, output):
            answer, start = strip_span(text, *characters)
            if not answer:
                continue
            new = AnswerCandidate(answer, start, start + len(answer), math.exp(score - total))
            old = found.setdefault(answer.lower(), new)
            if old is not new:
                found[answer.lower()] = dataclasses.replace(old, score=old.score + new.score)
    return sorted(found.values(), key=lambda one: -one.score)


def _log(score: float) -> float:
    return math.log(score) if score > 0 else -math.inf
