"""Reads tests/golden: numbers from the official code (its README says what each case holds)."""

import dataclasses
import json

import jax
import numpy as np

from deberta_jax.convert.mapping import to_params

from .paths import GOLDEN

# Gradients that vanish but for rounding: these shift whole softmax rows.
INVARIANT = ("pos_key_proj/bias",)


@dataclasses.dataclass(frozen=True)
class Case:
    """One folder. Arrays by their names in the file."""

    config: dict
    arrays: dict[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}

    def params(self, prefix: str, config, **options) -> dict:
        return to_params(self.group(prefix), config, **options)


def load(name: str) -> Case:
    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    with np.load(folder / "arrays.npz") as arrays:
        return Case(config, dict(arrays))


def assert_close(got, want, tolerance: float, what: str = "") -> None:
    """The largest difference is at most `tolerance` of the largest magnitude."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    worst, size = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    assert worst <= tolerance * size, f"{what}: differs by {worst:.2e}, of {size:.2e} ({worst / max(size, 1e-30):.1e})"


def assert_gradients_close(got: dict, want: dict, tolerance: float, invariant: tuple[str, ...] = INVARIANT) -> None:
    """As assert_close for every leaf; where theory says zero, both must be tiny beside the largest gradient."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want))
    wanted = dict(jax.tree.leaves_with_path(want))
    found = dict(jax.tree.leaves_with_path(got))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        name = "/".join(key.key for key in path)
        if name.endswith(invariant):
            assert np.abs(found[path]).max() <= 1e-5 * largest, name
            assert np.abs(leaf).max() <= 1e-5 * largest, name
        else:
            assert_close(found[path], leaf, tolerance, name)


def masked_slots(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels [B, S], 0 for none -> masked_positions and masked_labels [B, M]."""
    slots = int((labels > 0).sum(axis=1).max())
    positions, originals = np.zeros((2, labels.shape[0], slots), np.int32)
    for row, line in enumerate(labels):
        at = np.nonzero(line > 0)[0]
        positions[row, : len(at)], originals[row, : len(at)] = at, line[at]
    return positions, originals
