"""What fine-tuning needs of a task, whatever its kind.

A kind of task is an `Objective` (a head, its loss, its answers: nothing but arrays) and a `Task` (examples, scores).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError

Kind = Literal["classification", "regression", "choice", "tokens", "span"]
Batch = dict[str, np.ndarray]
Arrays = Mapping[str, jax.Array]
Found = Sequence[Mapping[str, np.ndarray]]  # what `Objective.predict` made of each example of a split, in its order


def stack_probabilities(found: Found, unit: str) -> np.ndarray:
    """`probabilities` of every example, [E, C]. Raises ValueError where one is not finite; the `unit` is named."""
    probabilities = np.stack([one["probabilities"] for one in found])
    if not np.isfinite(probabilities).all():
        row = int(np.argmin(np.isfinite(probabilities).all(axis=1)))
        raise UserError(f"the probabilities of {unit} {row} are not finite; the model has diverged")
    return probabilities


class Encoded(Protocol):
    """Token ids of the E examples of a split, in memory.

    `lengths`: int32 [E], tokens of each example (of its longest row). `notes`: what a user has to be told of the
    encoding, such as "12 cut to 128 tokens"; lines that say nothing of note are left out.
    """

    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def labeled(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def batch(self, rows: np.ndarray, *, length: int) -> Batch:
        """Examples `rows` padded to `length` tokens, which is not less than their `lengths`.

        Has int32 [B, ..., S] `input_ids`, `attention_mask`, `token_type_ids`, and what the objective needs besides,
        the labels only where the split is labeled.
        """
        ...


class Objective(Protocol):
    """How a kind of task trains and answers. Methods are traced; `out` is what the model returns for a batch."""

    def model(self, config: DebertaConfig, *, dtype: Any, remat: bool) -> nn.Module: ...

    def loss(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """The sum over what counts, and the number of it: float32 scalars."""
        ...

    def count(self, batch: Arrays) -> jax.Array:
        """The number that `loss` returns, from the batch alone."""
        ...

    def answers(self, out: Any, batch: Arrays) -> tuple[jax.Array, jax.Array | None]:
        """Logits [..., C] and the weight [...] (None: all count) of every answer, as `sift.adversarial_loss` takes
        them."""
        ...

    def predict(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Arrays [B, ...] that `Task.score` and `Task.records` need of the model."""
        ...


class Task(Protocol):
    """Examples of one task by split: "train", then, where there are any, "validation", others by name, "test".

    `label_names[i]` is the name of class i; empty where the task has no classes. `main_metric`: which of the figures
    of `score` says how good a model is; higher is better.
    """

    @property
    def name(self) -> str: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...
    @property
    def main_metric(self) -> str: ...
    @property
    def splits(self) -> Mapping[str, Encoded]: ...

    def score(self, split: str, found: Found) -> dict[str, float]:
        """The metrics of a labeled split. Raises ValueError where predictions are not finite."""
        ...

    def records(self, split: str, found: Found) -> Iterator[dict[str, Any]]:
        """One JSON object an example of the split: what was asked, what is predicted, with which probability."""
        ...

    def plot(self, path: Path, split: str, found: Found) -> None:
        """Draws the predictions of a labeled split into a PNG file; does nothing for kinds without a plot."""
        ...
