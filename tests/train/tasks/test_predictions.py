"""Predictions in the arrays of their batches equal one dict for each example, in a fraction of the memory."""

import tracemalloc

import numpy as np
import pytest

from deberta_jax.train.tasks.predictions import BatchPredictions


def test_each_example_has_its_row_of_its_batch() -> None:
    predictions = BatchPredictions(5)
    predictions.add(np.array([3, 0]), {"score": np.array([1.0, 2.0]), "spans": np.arange(6).reshape(2, 3)})
    # The last batch is filled up with a copy.
    predictions.add(np.array([1, 4, 2]), {"score": np.array([3.0, 4.0, 5.0, 5.0]), "spans": np.zeros((4, 7))})
    assert len(predictions) == 5
    assert [float(prediction["score"]) for prediction in predictions] == [2.0, 3.0, 5.0, 1.0, 4.0]
    np.testing.assert_array_equal(predictions[0]["spans"], [3, 4, 5])
    assert predictions[-1]["spans"].shape == (7,)
    assert [float(prediction["score"]) for prediction in predictions[1:3]] == [3.0, 5.0]
    with pytest.raises(IndexError):
        predictions[5]


def test_an_example_takes_little_more_than_its_numbers() -> None:
    """A dict of two arrays takes 400 bytes."""
    tracemalloc.start()
    predictions = BatchPredictions(32_000)
    for first in range(0, 32_000, 32):
        arrays = {"probabilities": np.zeros((32, 3), np.float32), "score": np.zeros(32, np.float32)}
        predictions.add(np.arange(first, first + 32), arrays)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(predictions) < 60
