"""A reward model, which gives the better one of two answers the higher score: objective and task."""

import dataclasses
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
from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForMultipleChoice
from deberta_jax.terminal import quote_names
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...configs import FinetuneConfig
from ..base import PROBABILITY_BYTES, AnswerLogits, Arrays, Predictions, WithoutTuning, mean_json_size
from ..class_metrics import chosen_metric
from ..metrics import check_predictions
from ..sources.delimited import Reading
from ..sources.source import Source, columns_of, named_splits, open_table
from .encoding import EncodedPreferences, encode_preferences
from .examples import Preference, read_preferences

_METRICS = ("accuracy", "margin", "log_loss")


def load(config: FinetuneConfig, tokenizer: Tokenizer) -> "RewardTask":
    """Returns the tokenized task of a run.

    `text_column` is the prompt, and the two `choices_columns` are the better and the worse answer. The test source has
    both as well.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if a source cannot be read or used; the message has the file, the line and the reason.
    """
    columns = config.data.columns
    answers = columns.choices_columns or ("chosen", "rejected")
    if len(answers) != 2:
        raise UserError(
            f"choices_columns are {quote_names(answers)}; kind 'reward' needs the column of the better answer and that "
            "of the worse one"
        )
    examples, splits = {}, {}
    for name, split, _ in named_splits(config.data.train, config.data.validation, config.data.test):
        columns_of(split, "reward", {})  # raises for a published set, none of which is of this kind
        table = open_table(
            split,
            label_column=answers[0],
            data_dir=config.data.data_dir,
            manual_dir=config.data.manual_dir,
            reading=Reading.of(columns),
        )
        examples[name], notes = read_preferences(
            table, prompt=columns.text_column, chosen=answers[0], rejected=answers[1]
        )
        splits[name] = encode_preferences(examples[name], tokenizer, max_length=config.data.max_length, notes=notes)
    metric = chosen_metric(config.selection.metric, _METRICS) or _METRICS[0]
    name = Source.parse(config.data.train).name
    return RewardTask(name, Reward(config.regularization.label_smoothing), examples, splits, metric)


@dataclasses.dataclass(frozen=True)
class Reward:
    """One score for each of two answers. Implements `base.Objective`.

    Attributes:
      label_smoothing: share of a preference that is spread over both answers.
    """

    label_smoothing: float = 0.0

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        """Returns a model that scores several texts, with the parameters of a classification with one output."""
        return DebertaForMultipleChoice(config, dtype=dtype, remat=remat)

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del batch
        return losses.pairwise(out.logits[:, 0], out.logits[:, 1], smoothing=self.label_smoothing)

    def count(self, batch: Arrays) -> Float[Array, ""]:
        return jnp.asarray(batch["input_ids"].shape[0], jnp.float32)

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        """Returns logits [B, 2], whose softmax is the probability that each answer is the better one."""
        del batch
        return AnswerLogits(out.logits)

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns `scores` [B, 2]."""
        del batch
        return {"scores": out.logits}


@dataclasses.dataclass(frozen=True)
class RewardTask(WithoutTuning):
    """A task of preferences. Implements `base.Task`."""

    name: str
    objective: Reward
    examples: Mapping[str, Sequence[Preference]]
    splits: Mapping[str, EncodedPreferences]
    main_metric: str = "accuracy"
    label_names: tuple[str, ...] = ()

    def score(self, split: str, predictions: Predictions) -> dict[str, float]:
        """Returns the share of the pairs with the higher score for the better answer, its mean lead, and the loss."""
        del split
        scores = self._scores(predictions)
        margins = scores[:, 0] - scores[:, 1]
        return {
            "accuracy": float((margins > 0).mean()),
            "margin": float(margins.mean()),
            "log_loss": float(np.logaddexp(0, -margins).mean()),
        }

    def records(self, split: str, predictions: Predictions) -> Iterator[dict[str, Any]]:
        for example, (chosen, rejected) in zip(self.examples[split], self._scores(predictions), strict=True):
            prompt = {} if example.prompt is None else {"prompt": example.prompt}
            texts = {"chosen": example.chosen, "rejected": example.rejected}
            yield prompt | texts | {"chosen_score": float(chosen), "rejected_score": float(rejected)}

    def record_size(self, split: str) -> float:
        return mean_json_size(self.examples[split]) + 2 * PROBABILITY_BYTES

    def plot(self, path: Path, split: str, predictions: Predictions) -> None:
        """Does nothing, because this kind has no plot."""

    def _scores(self, predictions: Predictions) -> Float[np.ndarray, "E 2"]:
        """Returns the scores. Raises TrainingError if one is not finite."""
        scores = np.array([prediction["scores"] for prediction in predictions], np.float64)
        check_predictions(scores.sum(axis=1))
        return scores
