"""Reads tests/golden: numbers from the official code (its README describes each case)."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from deberta_jax.convert.mapping import to_params

from .paths import GOLDEN

# Gradients that are zero but for rounding: these biases shift whole rows of the softmax.
INVARIANT = ("pos_key_proj/bias",)


@dataclasses.dataclass(frozen=True)
class Case:
    """One folder: its configuration, and its arrays by their names in the file."""

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}

    def params(self, prefix: str, config, **options) -> dict[str, Any]:
        return to_params(self.group(prefix), config, **options)


def load(name: str) -> Case:
    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    with np.load(folder / "arrays.npz") as arrays:
        return Case(config, dict(arrays))


_least_tolerance = 0.0


def allow(tolerance: float) -> None:
    """Sets the smallest tolerance of this process, for devices whose float32 arithmetic is not a CPU's."""
    global _least_tolerance  # noqa: PLW0603
    _least_tolerance = tolerance


def assert_close(got, want, tolerance: float, name: str = "") -> None:
    """Asserts that the largest difference is at most `tolerance` times the largest magnitude."""
    tolerance = max(tolerance, _least_tolerance)
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, not {want.shape}"
    worst, size = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    assert worst <= tolerance * size, f"{name}: differs by {worst:.2e}, of {size:.2e} ({worst / max(size, 1e-30):.1e})"


def assert_gradients_close(
    got: dict[str, Any], want: dict[str, Any], tolerance: float, invariant: tuple[str, ...] = INVARIANT
) -> None:
    """Applies `assert_close` to every leaf; of the invariant ones both must be tiny beside the largest gradient."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want))
    wanted, gradients = dict(jax.tree.leaves_with_path(want)), dict(jax.tree.leaves_with_path(got))
    assert gradients.keys() == wanted.keys()
    for path, leaf in wanted.items():
        name = "/".join(key.key for key in path)
        if name.endswith(invariant):
            assert np.abs(gradients[path]).max() <= 1e-5 * largest, name
            assert np.abs(leaf).max() <= 1e-5 * largest, name
        else:
            assert_close(gradients[path], leaf, tolerance, name)


def masked_slots(
    labels: Int[np.ndarray, "B S"],
) -> tuple[Int[np.ndarray, "B M"], Int[np.ndarray, "B M"]]:
    """Returns masked_positions and masked_labels for labels in which 0 means that a token is not masked."""
    slots = int((labels > 0).sum(axis=1).max())
    positions, originals = np.zeros((2, labels.shape[0], slots), np.int32)
    for row, row_labels in enumerate(labels):
        masked = np.nonzero(row_labels > 0)[0]
        positions[row, : len(masked)], originals[row, : len(masked)] = masked, row_labels[masked]
    return positions, originals
