"""Answers that are spans of a context, where some questions may have none (SQuAD 1.1 and 2.0): objective and task.

Loss and prediction choose among the tokens of the context and [CLS], which means "no answer". Deliberate difference: in
BERT's run_squad.py and transformers the softmax covers all tokens of a row, including the question and padding, and
invalid spans are removed afterwards, so that a model must first learn which tokens cannot be chosen. The official
DeBERTa code has no SQuAD; its published figures are of the usual recipe.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deberta_jax import losses
from deberta_jax.config import DebertaConfig
from deberta_jax.models import DebertaForQuestionAnswering
from deberta_jax.predict.span_search import best_spans
from deberta_jax.sift import span_logits
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ..base import AnswerLogits, Arrays, Predictions, unlabeled_split
from ..sources.delimited import Reading
from .answers import SpanPrediction, combine_windows
from .questions import SpanData, SpanQuestion, load_questions
from .squad_metrics import squad_v1, squad_v2
from .windows import Windows, encode_span_questions

_CANDIDATE_BYTES = 140  # of a candidate answer in a record


def load(config: FinetuneConfig, tokenizer: Tokenizer) -> "SpanTask":
    """Returns the tokenized task of a run. Raises the errors of `load_questions` and `encode_span_questions`."""
    data = load_questions(
        config.data.train,
        validation=config.data.validation,
        test=config.data.test,
        text_column=config.data.columns.text_column or "question",
        pair_column=config.data.columns.pair_column or "context",
        label_column=config.data.columns.label_column or "answers",
        start_column=config.data.columns.start_column,
        data_dir=config.data.data_dir,
        manual_dir=config.data.manual_dir,
        reading=Reading.of(config.data.columns),
    )
    splits = {
        name: encode_span_questions(
            questions,
            tokenizer,
            max_length=config.data.max_length,
            max_question_length=config.spans.max_question_length,
            doc_stride=config.spans.doc_stride,
            max_answer_length=config.spans.max_answer_length,
            training=name == "train",
            notes=data.notes[name],
        )
        for name, questions in data.splits.items()
    }
    objective = Spans(
        n_best=config.spans.n_best,
        max_answer_length=config.spans.max_answer_length,
        label_smoothing=config.regularization.label_smoothing,
    )
    return SpanTask(data, objective, splits, null_threshold=config.spans.null_threshold)


@dataclasses.dataclass(frozen=True)
class Spans:
    """A softmax over the tokens for the start and another for the end. Implements `base.Objective`.

    Attributes:
      n_best: number of spans that are kept per window.
      max_answer_length: largest number of tokens of an answer.
      label_smoothing: share of a label that is spread over all tokens that can be chosen.
    """

    n_best: int = 20
    max_answer_length: int = 30
    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        return DebertaForQuestionAnswering(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Start and end count as one answer each, so that the loss is the mean of their losses."""
        logits = self.answers(out, batch).logits
        return losses.span(logits, batch["ends"], batch["choosable"], smoothing=self.label_smoothing)

    def count(self, batch: Arrays) -> Float[Array, ""]:
        return jnp.asarray(2 * batch["input_ids"].shape[0], jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        """Returns logits [B, 2, S]."""
        return AnswerLogits(span_logits(out.start_logits, out.end_logits, batch["choosable"]))

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns the fields of `BestSpans`, the score of "no answer" as `null_score` [B], and `finite` [B]."""
        choosable = batch["choosable"] != 0
        sums = jnp.where(choosable, out.start_logits, 0.0) + jnp.where(choosable, out.end_logits, 0.0)
        spans = best_spans(
            out.start_logits,
            out.end_logits,
            choosable.at[:, 0].set(False),
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
        )
        return {**spans._asdict(), "null_score": sums[:, 0], "finite": jnp.isfinite(sums).all(axis=1)}


@dataclasses.dataclass(frozen=True)
class SpanTask:
    """A task of questions. Implements `base.Task`.

    The examples of `splits` are windows; scores and records are of questions.

    "No answer" is predicted if its score is more than `null_threshold` above that of the best span. If every training
    question has an answer, "no answer" is never predicted, because the model has not learned when to do so.
    """

    data: SpanData
    objective: Spans
    splits: Mapping[str, Windows]
    null_threshold: float = 0.0

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def label_names(self) -> tuple[str, ...]:
        return ()

    @property
    def main_metric(self) -> str:
        return "f1"

    @property
    def examples(self) -> Mapping[str, Sequence[SpanQuestion]]:
        return self.data.splits

    @functools.cached_property
    def allows_no_answer(self) -> bool:
        """Whether "no answer" can be predicted."""
        return any(not question.answers for question in self.data.splits["train"])

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        """Returns the metrics of SQuAD's scripts, as fractions.

        These are those of `squad_v2` if training or the split has questions without an answer, else of `squad_v1`.
        """
        if not self.splits[split].labeled:
            raise unlabeled_split(split)
        golds = [[answer.text for answer in question.answers or ()] for question in self.data.splits[split]]
        texts, no_answer = [], []
        for prediction in self._of_questions(split, predictions):
            texts.append(prediction.candidates[0].text if prediction.candidates else "")
            no_answer.append(prediction.no_answer)
        if self.allows_no_answer:
            return squad_v2(golds, texts, no_answer, threshold=self.null_threshold)
        return squad_v1(golds, texts) if all(golds) else squad_v2(golds, texts)

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Does nothing, because this kind has no plot."""

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        """Yields one JSON object per question, in the order of the source.

        `n_best` has the spans in descending order of score, and "" for "no answer" where it can be predicted; the
        probabilities are a softmax of the scores. `{record["id"]: record["prediction_text"] for ...}` is the format of
        the predictions that SQuAD's scripts read, and evaluate-v2.0.py reads `no_answer_score` with --na-prob-file.
        """
        of_questions = self._of_questions(split, predictions)
        for question, prediction in zip(self.data.splits[split], of_questions, strict=True):
            yield self._record(question, prediction)

    def record_size(self, split: str) -> float:
        questions = self.data.splits[split]
        words = sum(len(question.question) for question in questions) / max(1, len(questions))
        return words + (self.objective.n_best + 1) * _CANDIDATE_BYTES

    def _of_questions(self, split: str, predictions: Predictions) -> Iterator[SpanPrediction]:
        return combine_windows(self.data.splits[split], self.splits[split], predictions, n_best=self.objective.n_best)

    def _record(self, question: SpanQuestion, prediction: SpanPrediction) -> dict[str, Any]:
        entries = [
            {"text": candidate.text, "answer_start": candidate.start, "score": candidate.score}
            for candidate in prediction.candidates
        ]
        predicts_none = not entries or (self.allows_no_answer and prediction.no_answer > self.null_threshold)
        if self.allows_no_answer or not entries:
            entries.append({"text": "", "score": prediction.null_score})
        scores = np.array([entry["score"] for entry in entries])
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        n_best = [entry | {"probability": float(share)} for entry, share in zip(entries, shares, strict=True)]
        chosen = n_best[-1 if predicts_none else 0]
        record: dict[str, Any] = {"id": question.id, "question": question.question}
        if question.answers is not None:
            record["answers"] = [answer.text for answer in question.answers]
        record |= {"prediction_text": chosen["text"], "probability": chosen["probability"]}
        if self.allows_no_answer:
            record |= {"null_score": prediction.null_score, "no_answer_score": prediction.no_answer}
        return record | {"n_best": sorted(n_best, key=lambda entry: -entry["score"])}
