"""Answers that are spans of a context, with or without questions that have none: SQuAD 1.1 and 2.0.

Loss and prediction choose among [CLS], which stands for "no answer", and the tokens of the context. Deliberate
difference: BERT's run_squad.py and transformers take the softmax over all tokens of a row, the question and padding
included, and throw away what is no span afterwards; a model has to learn first what is said to it here. The official
DeBERTa code has no SQuAD; its published figures are of the usual recipe.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import losses
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForQuestionAnswering
from deberta_jax.sift import span_logits
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ..base import Arrays, Found
from .answers import Prediction, best_spans, predictions
from .questions import Question, QuestionData, load_questions
from .squad_metrics import squad_v1, squad_v2
from .windows import Windows, encode_questions


def load(config: FinetuneConfig, tokenizer: Tokenizer) -> "SpanTask":
    """The task of a run, tokenized. Raises as `load_questions` and `encode_questions`."""
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
    )
    splits = {
        name: encode_questions(
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
    """One softmax over the tokens for the start, one for the end. A `base.Objective`.

    `n_best`: spans that are kept of a row. `max_answer_length`: tokens of an answer at most. `label_smoothing`: the
    share of a label that is spread over all tokens that can be chosen.
    """

    n_best: int = 20
    max_answer_length: int = 30
    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        return DebertaForQuestionAnswering(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Start and end count as one answer each, so that their mean is that of the two losses."""
        logits, _ = self.answers(out, batch)
        return losses.span(logits, batch["ends"], batch["choosable"], smoothing=self.label_smoothing)

    def count(self, batch: Arrays) -> jax.Array:
        return jnp.asarray(2 * batch["input_ids"].shape[0], jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array | None]:
        """float32 [B, 2, S]."""
        return span_logits(out.start_logits, out.end_logits, batch["choosable"]), None

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """`best_spans` of each row, the score of "no answer" as `null_score` [B], and `finite` bool [B]."""
        chosen = batch["choosable"] != 0
        both = jnp.where(chosen, out.start_logits, 0.0) + jnp.where(chosen, out.end_logits, 0.0)
        spans = best_spans(
            out.start_logits,
            out.end_logits,
            chosen.at[:, 0].set(False),
            n_best=self.n_best,
            max_answer_length=self.max_answer_length,
        )
        return spans | {"null_score": both[:, 0], "finite": jnp.isfinite(both).all(axis=1)}


@dataclasses.dataclass(frozen=True)
class SpanTask:
    """A `base.Task` whose examples are windows, and whose scores and records are of questions.

    "No answer" is predicted where its score is more than `null_threshold` above that of the best span, and only where
    training has questions without an answer; otherwise nothing has taught the model when to say so.
    """

    data: QuestionData
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

    @functools.cached_property
    def may_be_silent(self) -> bool:
        return any(not question.answers for question in self.data.splits["train"])

    def score(self, split: str, found: Found) -> dict[str, float]:
        """In per cent, as SQuAD's scripts: `squad_v2` where training or the split has questions without an answer, else
        `squad_v1`; see there for the figures."""
        questions = self.data.splits[split]
        if not self.splits[split].labeled:
            raise UserError(f"the {split} split has no answers to measure against; leave it out")
        golds = [[answer.text for answer in question.answers or ()] for question in questions]
        answered = self._predictions(split, found)
        texts = [one.candidates[0].text if one.candidates else "" for one in answered]
        if self.may_be_silent:
            return squad_v2(golds, texts, [one.no_answer for one in answered], threshold=self.null_threshold)
        return squad_v1(golds, texts) if all(golds) else squad_v2(golds, texts)

    def plot(self, path: Path, split: str, found: Found) -> None:
        """Does nothing: this kind has no plot."""

    def records(self, split: str, found: Found) -> Iterator[dict[str, Any]]:
        """One JSON object a question, in the order of the source.

        `n_best` has the spans by their score, and "" for "no answer" where that can be predicted; their probabilities
        are a softmax of the scores. `{record["id"]: record["prediction_text"] for ...}` is what SQuAD's scripts read as
        predictions, `no_answer_score` what evaluate-v2.0.py reads with --na-prob-file.
        """
        for question, prediction in zip(self.data.splits[split], self._predictions(split, found), strict=True):
            yield self._record(question, prediction)

    def _predictions(self, split: str, found: Found) -> list[Prediction]:
        return predictions(self.data.splits[split], self.splits[split], found, n_best=self.objective.n_best)

    def _record(self, question: Question, prediction: Prediction) -> dict[str, Any]:
        entries = [{"text": one.text, "answer_start": one.start, "score": one.score} for one in prediction.candidates]
        silent = not entries or (self.may_be_silent and prediction.no_answer > self.null_threshold)
        if self.may_be_silent or not entries:
            entries.append({"text": "", "score": prediction.null_score})
        scores = np.array([entry["score"] for entry in entries])
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        n_best = [entry | {"probability": float(share)} for entry, share in zip(entries, shares, strict=True)]
        chosen = n_best[-1 if silent else 0]
        known = {} if question.answers is None else {"answers": [answer.text for answer in question.answers]}
        doubt = (
            {"null_score": prediction.null_score, "no_answer_score": prediction.no_answer} if self.may_be_silent else {}
        )
        return {
            "id": question.id,
            "question": question.question,
            **known,
            "prediction_text": chosen["text"],
            "probability": chosen["probability"],
            **doubt,
            "n_best": sorted(n_best, key=lambda entry: -entry["score"]),
        }
