"""Relative positions: which row of the relative table a distance reads. NumPy on the host, never in the graph.

A float32 logarithm inside the compiled program puts some distances into the wrong bucket (on XLA CPU 511 of
(128, 512), for one), and a TPU's logarithm is another approximation still. So every index here is a constant that
is computed once in float64.
"""

import numpy as np
from jaxtyping import Int

from .config import DebertaConfig


def log_bucket(distance: np.ndarray, *, buckets: int, reach: int) -> np.ndarray:
    """Signed logarithmic bucket of each distance (official `make_log_bucket_position`, with its clamp).

    Args:
      distance: int array of query position minus key position.
      buckets: config.position_buckets. Distances below buckets / 2 keep a bucket each.
      reach: distances are clamped to [-reach + 1, reach - 1] first.

    Returns:
      int32 array of the same shape, within [-buckets + 1, buckets - 1].
    """
    distance = np.clip(np.asarray(distance, np.int64), 1 - reach, reach - 1)
    middle = buckets // 2
    size = np.maximum(np.abs(distance), middle)  # below the middle the logarithm is not used
    far = np.ceil(np.log(size / middle) / np.log((reach - 1) / middle) * (middle - 1)) + middle
    return np.where(np.abs(distance) <= middle, distance, np.sign(distance) * far).astype(np.int32)


def relative_index(distance: Int[np.ndarray, "*shape"], config: DebertaConfig) -> Int[np.ndarray, "*shape"]:
    """Row of `rel_embeddings` for each distance: int32, within [0, 2 * att_span)."""
    if config.position_buckets > 0:
        distance = log_bucket(distance, buckets=config.position_buckets, reach=config.relative_reach)
    span = config.att_span
    return np.clip(np.asarray(distance) + span, 0, 2 * span - 1).astype(np.int32)


def live_rows(length: int, config: DebertaConfig) -> tuple[slice, np.ndarray]:
    """The part of the relative table that sequences of `length` tokens can reach.

    Returns:
      The slice of `rel_embeddings` that holds every row in use, and an int32 array [2 * length - 1]: the row, counted
      from the slice's start, of each distance from length - 1 down to -(length - 1).
    """
    rows = relative_index(np.arange(length - 1, -length, -1), config)
    first, last = int(rows.min()), int(rows.max())
    return slice(first, last + 1), rows - first
