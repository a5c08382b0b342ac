"""The predictions for a split, in the arrays of the batches that they were computed in."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from .on_demand import OnDemand


class BatchPredictions(OnDemand[Mapping[str, np.ndarray]]):
    """Maps each example of a split to its row of the arrays of its batch.

    A dict and an array for each example would take more memory than most texts.

    Args:
      count: number of examples.
    """

    def __init__(self, count: int) -> None:
        self._batches: list[dict[str, np.ndarray]] = []
        self._batch = np.full(count, -1, np.int32)
        self._row = np.zeros(count, np.int32)

    def add(self, indices: Int[np.ndarray, "examples"], arrays: dict[str, np.ndarray]) -> None:
        """Adds the arrays [B, ...] of a batch, whose first rows belong to the examples at `indices`."""
        self._batch[indices] = len(self._batches)
        self._row[indices] = np.arange(len(indices))
        self._batches.append(arrays)

    def __len__(self) -> int:
        return len(self._batch)

    def _build(self, position: int) -> Mapping[str, np.ndarray]:
        row = self._row[position]
        return {name: array[row] for name, array in self._batches[self._batch[position]].items()}
