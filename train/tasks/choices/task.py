"""Multiple choice: which of several texts goes with a context and a question. Each choice is scored by itself.

A model reads `[CLS] context [SEP] question choice [SEP]`, RoBERTa two separators in the middle; a blank in the question
("The man _ .") is filled by the choice instead. What is too long is cut from the end of the context. Nothing is
dropped: a row that cannot be used stops the run and is named by file and line.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import losses
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForMultipleChoice
from deberta_jax.tokenizers.tokenizer import JoinedIds, Tokenizer

from ...configs import FinetuneConfig
from ..base import Arrays, Batch, Found, stack_probabilities
from ..metrics import compute_metrics
from ..sources.published import Columns
from ..sources.source import Source, columns_of, named_splits, open_table
from .questions import Question, join, read_questions

_MASKED = -1e9  # the logit of a choice that an example does not have: finite, so that 0 times it is 0


# -------------------------------------------------------------------------------------------------------- encoding


class TextTokenizer(Protocol):
    pair_separators: int

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def with_special_tokens(self, a: Iterable[int], b: Iterable[int]) -> JoinedIds: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedQuestions:
    """Token ids of E questions with at most C choices. A `base.Encoded`.

    `contexts[e]` and `pairs[e][c]`: int32 ids without special tokens, of a context as much as a choice leaves room for,
    of a pair (question and choice) no more than fits. `lengths` int32 [E]; `labels` int32 [E], None for unlabeled
    questions.
    """

    contexts: Sequence[np.ndarray]
    pairs: Sequence[Sequence[np.ndarray]]
    lengths: np.ndarray
    labels: np.ndarray | None
    notes: tuple[str, ...]
    max_length: int
    tokenizer: TextTokenizer

    @property
    def labeled(self) -> bool:
        return self.labels is not None

    @functools.cached_property
    def most_choices(self) -> int:
        return max(map(len, self.pairs))

    def batch(self, rows: np.ndarray, *, length: int) -> Batch:
        """Rows as int32 [B, C, length] `input_ids`, `attention_mask`, `token_type_ids`; int32 [B, C] `real`, 0 for a
        choice that a question does not have (a copy of its first); int32 [B] `labels` if there are any."""
        shape = (len(rows), self.most_choices, length)
        ids, mask, types = (np.zeros(shape, np.int32) for _ in range(3))
        real = np.zeros(shape[:2], np.int32)
        for place, row in enumerate(rows):
            pairs = self.pairs[row]
            real[place, : len(pairs)] = 1
            for choice in range(shape[1]):
                pair = pairs[choice] if choice < len(pairs) else pairs[0]
                context = self.contexts[row][: self.max_length - 2 - self.tokenizer.pair_separators - len(pair)]
                joined, joined_types = self.tokenizer.with_special_tokens(context, pair)
                ids[place, choice, : len(joined)] = joined
                mask[place, choice, : len(joined)] = 1
                types[place, choice, : len(joined)] = joined_types
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "real": real}
        return batch if self.labels is None else batch | {"labels": self.labels[rows]}


def encode_questions(questions: Sequence[Question], tokenizer: TextTokenizer, *, max_length: int) -> EncodedQuestions:
    """Tokenizes questions for rows of at most `max_length` ids.

    Deliberate difference: the official RACE task cuts the front or the back of either text, at random, and would put
    the shorter text first.

    Raises:
      ValueError: max_length leaves no room for a choice.
    """
    special = 2 + tokenizer.pair_separators
    budget = max_length - special
    if budget < 1:
        raise UserError(
            f"max_length is {max_length}; it must be at least {special + 1}, for a piece among {special} special tokens"
        )
    texts = list(dict.fromkeys(question.context for question in questions))  # RACE asks some four of each
    of_text = dict(zip(texts, _ids(tokenizer, texts), strict=True))
    joined = iter(_ids(tokenizer, [join(one.question, choice) for one in questions for choice in one.choices]))
    contexts, pairs, lengths = [], [], np.zeros(len(questions), np.int32)
    cut = cut_choices = 0
    for number, question in enumerate(questions):
        context, whole = of_text[question.context], [next(joined) for _ in question.choices]
        longest = max(map(len, whole))
        cut += len(context) > budget - min(longest, budget)
        cut_choices += longest > budget
        contexts.append(context)
        pairs.append([pair[:budget] for pair in whole])
        lengths[number] = min(len(context) + longest + special, max_length)
    most = max(map(len, pairs))
    fewer = sum(len(one) < most for one in pairs)
    labels = [question.label for question in questions if question.label is not None]
    counts = {
        f"{cut} contexts cut to {max_length} tokens with the question and the choice": cut,
        f"{cut_choices} with choices cut to {max_length} tokens": cut_choices,
        f"{fewer} with fewer than {most} choices": fewer,
        "the same choice is right everywhere": len(labels) > 1 and len(set(labels)) == 1,
    }
    return EncodedQuestions(
        contexts,
        pairs,
        lengths,
        np.array(labels, np.int32) if labels else None,
        tuple(note for note, count in counts.items() if count),
        max_length,
        tokenizer,
    )


def _ids(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in tokenizer.encode_batch(texts)]


# ----------------------------------------------------------------------------------------------- objective and task


def load(config: FinetuneConfig, tokenizer: Tokenizer) -> "ChoiceTask":
    """The task of a run, tokenized.

    Columns: `text_column` the context, `pair_column` the question if there is one, `choices_columns` a column of lists
    or a column a choice, `label_column` the index, letter or text of the right choice. Where the question is a list,
    the row has as many questions as it is long. A test source may leave its labels out, all of them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a source that cannot be read or used; one line with the file, the line and the reason.
    """
    questions, splits = {}, {}
    for name, split, role in named_splits(config.data.train, config.data.validation, config.data.test):
        columns = columns_of(split, "choice", _columns(config))
        table = open_table(
            split, label_column=str(columns["label"]), data_dir=config.data.data_dir, manual_dir=config.data.manual_dir
        )
        questions[name] = read_questions(table, columns, labels_optional=role == "test")
        splits[name] = encode_questions(questions[name], tokenizer, max_length=config.data.max_length)
    return ChoiceTask(
        Source.parse(config.data.train).name, Choice(config.regularization.label_smoothing), questions, splits
    )


def _columns(config: FinetuneConfig) -> Columns:
    columns: dict[str, str | tuple[str, ...]] = {
        "text": config.data.columns.text_column or "text",
        "choices": config.data.columns.choices_columns or ("choices",),
        "label": config.data.columns.label_column or "label",
    }
    return columns | ({"pair": config.data.columns.pair_column} if config.data.columns.pair_column else {})


@dataclasses.dataclass(frozen=True)
class Choice:
    """One softmax over the choices of a question. A `base.Objective`.

    `label_smoothing`: the share of a label that is spread over all choices of its question.
    """

    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        return DebertaForMultipleChoice(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        logits, labels = _real_logits(out, batch), batch["labels"]
        if self.label_smoothing:  # not over the choices that a question does not have
            real = batch["real"] / batch["real"].sum(axis=-1, keepdims=True)
            right = jax.nn.one_hot(labels, logits.shape[-1])
            labels = (1 - self.label_smoothing) * right + self.label_smoothing * real
        return losses.classification(logits, labels)

    def count(self, batch: Arrays) -> jax.Array:
        return jnp.asarray(batch["input_ids"].shape[0], jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array | None]:
        return _real_logits(out, batch), None

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """`probabilities` [B, C], 0 for choices that a question does not have."""
        return {"probabilities": jax.nn.softmax(_real_logits(out, batch))}


def _real_logits(out: Any, batch: Arrays) -> jax.Array:
    return jnp.where(batch["real"] != 0, out.logits, _MASKED)


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
    """A `base.Task`. It has no classes: the model gives one score, whatever the choice."""

    name: str
    objective: Choice
    questions: Mapping[str, tuple[Question, ...]]
    splits: Mapping[str, EncodedQuestions]
    label_names: tuple[str, ...] = ()
    main_metric: str = "accuracy"

    def score(self, split: str, found: Found) -> dict[str, float]:
        labels = self.splits[split].labels
        if labels is None:
            raise UserError(f"the {split} split has no labels to measure against; leave it out")
        return compute_metrics(("accuracy",), stack_probabilities(found, "question").argmax(axis=1), labels)

    def plot(self, path: Path, split: str, found: Found) -> None:
        """Does nothing: this kind has no plot."""

    def records(self, split: str, found: Found) -> Iterator[dict[str, Any]]:
        for question, probabilities in zip(self.questions[split], stack_probabilities(found, "question"), strict=True):
            known: dict[str, Any] = {"text": question.context}
            known |= {} if question.question is None else {"question": question.question}
            known["choices"] = list(question.choices)
            known |= {} if question.label is None else {"label": question.label}
            shares = [float(share) for share in probabilities[: len(question.choices)]]
            yield known | {"prediction": int(probabilities.argmax()), "probabilities": shares}
