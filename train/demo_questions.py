"""The two questions of the demo: fine-tuning with several seeds, from a model and from random weights.

`deberta-jax finetune --seeds 0 1 2` does the same for any task, and writes a folder for each seed. Here all seeds use
one compiled program and only their accuracies are kept, so that twenty runs take two or three minutes.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deberta_jax.config import DebertaConfig
from deberta_jax.models import DebertaForReplacedTokenDetection
from deberta_jax.rtd import Params
from deberta_jax.sharding import make_mesh

from .configs import FinetuneConfig, OptimizerConfig, TaskDataConfig
from .demo_texts import EXCHANGED
from .finetune import build_layerwise_optimizer, build_state, build_step
from .finetune_evaluation import apply_model
from .finetune_setup import open_base, task_config
from .tasks.base import AnswerLogits, Arrays, Objective, stack_probabilities
from .tasks.batches import FinetuneBatches, evaluation_batches
from .tasks.loading import load_task
from .tasks.predictions import BatchPredictions
from .tasks.texts import TextObjective
from .tfidf import predict_by_tfidf


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about texts, and how it is trained.

    Attributes:
      name: of the files NAME-train.jsonl and NAME-test.jsonl.
      text: the question.
      max_length: tokens of a row.
      batch_size: rows of a batch.
      steps: number of steps.
      learning_rate: at the end of the warmup.
      by_token: answer from the logits of replaced tokens instead of a new classifier (see `AnyTokenReplaced`).
    """

    name: str
    text: str
    max_length: int
    batch_size: int
    steps: int
    learning_rate: float
    by_token: bool = False


@dataclasses.dataclass(frozen=True)
class AnyTokenReplaced(TextObjective):
    """Two classes from the logits of replaced tokens: a text has the class `positive` if any of its tokens looks wrong.

    The score of a text is log(sum(exp(logit))) over its tokens, a soft maximum. So a discriminator of replaced tokens
    needs no new parameter for the question. Implements `tasks.base.Objective`.

    Attributes:
      positive: index of the class whose texts have wrong tokens, 0 or 1.
    """

    positive: int

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module:
        return DebertaForReplacedTokenDetection(config, dtype=dtype, remat=remat)

    def scores(self, out: Any, batch: Arrays) -> Float[Array, "B"]:
        """Returns the score of each text, positive if the class `positive` is the more probable one."""
        return jax.nn.logsumexp(out.logits, axis=-1, where=batch["attention_mask"] != 0)

    def answers(self, out: Any, batch: Arrays) -> AnswerLogits:
        scores = self.scores(out, batch)
        pair = (jnp.zeros_like(scores), scores)
        return AnswerLogits(jnp.stack(pair if self.positive else pair[::-1], axis=-1))

    def loss(self, out: Any, batch: Arrays) -> tuple[Float[Array, ""], Float[Array, ""]]:
        logs = jax.nn.log_softmax(self.answers(out, batch).logits)
        return -jnp.take_along_axis(logs, batch["labels"][:, None], axis=-1).sum(), self.count(batch)

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        return {"probabilities": jax.nn.softmax(self.answers(out, batch).logits), "score": self.scores(out, batch)}


class SeedRuns:
    """Fine-tunes a model on a question, once for each seed, with one compiled program for all of them.

    Args:
      question: the question.
      folder: the folder of its files.
      model: the folder of the model.

    Raises:
      UserError: as `open_base` and `load_task`.
    """

    def __init__(self, question: Question, folder: Path, model: Path) -> None:
        train, test = (str(folder / f"{question.name}-{split}.jsonl") for split in ("train", "test"))
        self._config = FinetuneConfig(
            output=folder,  # nothing is written
            model=model,
            data=TaskDataConfig(train=train, test=test, max_length=question.max_length),
            batch_size=question.batch_size,
            steps=question.steps,
            optimizer=OptimizerConfig(learning_rate=question.learning_rate, warmup=0.1, beta2=0.98),
        )
        pretrained, weights, tokenizer, _ = open_base(self._config, make_mesh())
        self._weights = jax.device_get(weights)  # because the step donates what it is given
        self._task = load_task(self._config, tokenizer)
        self._objective: Objective = self._task.objective
        if question.by_token:
            self._objective = AnyTokenReplaced(self._task.label_names.index(EXCHANGED))
        config = task_config(self._config, pretrained, self._task)
        self._model = self._objective.model(config, dtype=jnp.float32, remat=False)
        self._optimizer = build_layerwise_optimizer(
            self._config, total_steps=question.steps, layers=config.num_hidden_layers
        )
        step = build_step(self._model, self._objective, self._optimizer, self._config, total_steps=question.steps)
        self._step = jax.jit(step, donate_argnums=0)
        self._predict = jax.jit(self._predict_batch)

    def accuracy(self, *, seed: int, random_weights: bool) -> float:
        """Trains with one seed and returns the accuracy on the test examples."""
        examples = self._task.splits["train"]
        first = examples.batch(np.zeros(1, np.int64), length=self._config.data.max_length)["input_ids"]
        weights = None if random_weights else self._weights
        state = build_state(self._model, self._optimizer, first, weights, seed=seed)
        state = dataclasses.replace(state, params={"model": self._centered(state.params["model"])})
        batches = FinetuneBatches(
            examples, batch_size=self._config.batch_size, max_length=self._config.data.max_length, seed=seed
        )
        for _ in range(self._config.steps or 0):
            state, _ = self._step(state, next(batches))
        test = self._task.splits["test"]
        predictions = BatchPredictions(len(test.lengths))
        for indices, batch in self._batches("test"):
            predictions.add(indices, jax.device_get(self._predict(state.params["model"], batch)))
        right = stack_probabilities(predictions, "example").argmax(axis=1) == test.labels  # pyright: ignore
        return float(right.mean())

    def _batches(self, split: str) -> Iterator[Any]:
        data = self._config.data
        return evaluation_batches(
            self._task.splits[split], batch_size=self._config.batch_size, max_length=data.max_length
        )

    def _predict_batch(self, params: Params, batch: Arrays) -> dict[str, jax.Array]:
        return self._objective.predict(apply_model(self._model, params, dict(batch)), batch)

    def _centered(self, params: Params) -> Params:
        """Returns parameters with which half of the first training texts are judged to have wrong tokens.

        Replaced tokens are rare in pre-training and common here. Random weights get the same help.
        """
        if not isinstance(self._objective, AnyTokenReplaced):
            return params
        batch = self._task.splits["train"].batch(
            np.arange(self._config.batch_size), length=self._config.data.max_length
        )
        middle = jnp.median(self._predict(params, batch)["score"])
        head = params["rtd_head"]
        classifier = {**head["classifier"], "bias": head["classifier"]["bias"] - middle}
        return {**params, "rtd_head": {**head, "classifier": classifier}}


def tfidf_accuracy(question: Question, folder: Path) -> float:
    """Returns the accuracy, on the test texts, of logistic regression on TF-IDF of words and pairs of words."""

    def read(split: str) -> tuple[list[tuple[str]], list[str]]:
        lines = (folder / f"{question.name}-{split}.jsonl").read_text(encoding="utf-8").splitlines()
        examples = [json.loads(line) for line in lines]
        return [(example["text"],) for example in examples], [example["label"] for example in examples]

    texts, labels = read("test")
    return float(np.mean(predict_by_tfidf(*read("train"), texts) == np.array(labels)))


def most_frequent_accuracy(question: Question, folder: Path) -> float:
    """Returns the accuracy of naming the most frequent class of the test texts for all of them."""
    lines = (folder / f"{question.name}-test.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    return max(map(labels.count, set(labels))) / len(labels)


@dataclasses.dataclass(frozen=True)
class Answers:
    """Accuracies on a question: one per seed from the model and from random weights, and those of two baselines."""

    tiny: list[float]
    random: list[float]
    tfidf: float
    most_frequent: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def answer(
    question: Question, folder: Path, model: Path, seeds: list[int], *, progress: Callable[[str], None]
) -> Answers:
    """Answers a question with every method. `progress` receives a line after each run."""
    baselines = tfidf_accuracy(question, folder), most_frequent_accuracy(question, folder)
    runs = SeedRuns(question, folder, model)
    found: dict[bool, list[float]] = {False: [], True: []}
    for seed in seeds:
        for random_weights in (False, True):
            found[random_weights].append(runs.accuracy(seed=seed, random_weights=random_weights))
        tiny, random = found[False][-1], found[True][-1]
        progress(f"seed {seed}: tiny {100 * tiny:.1f} %, random weights {100 * random:.1f} %")
    return Answers(found[False], found[True], *baselines)
