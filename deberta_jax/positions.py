"""Relative positions: which row of the relative table a distance reads. NumPy on the host, never in the graph.

A float32 logarithm inside the compiled program puts some distances into the wrong bucket (on XLA CPU 511 of
(128, 512), for one), and a TPU's logarithm is another approximation still. So every index here is a constant that
is computed once in float64.
"""

import dataclasses

import numpy as np
from jaxtyping import Int, Int32

from .config import DebertaConfig


def log_bucket(distance: Int[np.ndarray, "*shape"], *, buckets: int, reach: int) -> Int32[np.ndarray, "*shape"]:
    """Signed logarithmic bucket of each distance (official `make_log_bucket_position`, with its clamp).

    Args:
      distance: query position minus key position.
      buckets: config.position_buckets. Distances below buckets / 2 have a bucket each.
      reach: distances are clamped to [-reach + 1, reach - 1] first.

    Returns:
      Buckets within [-buckets + 1, buckets - 1].
    """
    distance = np.clip(np.asarray(distance, np.int64), 1 - reach, reach - 1)
    middle = buckets // 2
    size = np.maximum(np.abs(distance), middle)  # below the middle the logarithm is not used
    far = np.ceil(np.log(size / middle) / np.log((reach - 1) / middle) * (middle - 1)) + middle
    return np.where(np.abs(distance) <= middle, distance, np.sign(distance) * far).astype(np.int32)


def relative_index(distance: Int[np.ndarray, "*shape"], config: DebertaConfig) -> Int32[np.ndarray, "*shape"]:
    """Row of `rel_embeddings` for each distance, within [0, 2 * att_span)."""
    if config.position_buckets > 0:
        distance = log_bucket(distance, buckets=config.position_buckets, reach=config.relative_reach)
    span = config.att_span
    return np.clip(np.asarray(distance) + span, 0, 2 * span - 1).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class LiveRows:
    """The rows of `rel_embeddings` that sequences of one length can reach, and which distance reads which of them.

    Hashed and compared by value, so that it can be a static argument of a traced function.

    Attributes:
      start, stop: the reachable rows are `rel_embeddings[start:stop]`.
      row_of_distance: for each distance from S - 1 down to -(S - 1), the row it reads, counted from `start`.
    """

    start: int
    stop: int
    row_of_distance: Int[np.ndarray, "distances"]

    @property
    def length(self) -> int:
        """S, the number of tokens."""
        return (len(self.row_of_distance) + 1) // 2

    def row_of_pair(self) -> Int[np.ndarray, "S S"]:
        """Returns the row that each pair of a query and a key reads."""
        index = np.arange(self.length)
        return self.row_of_distance[self.length - 1 - index[:, None] + index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LiveRows) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, int, bytes]:
        return self.start, self.stop, self.row_of_distance.tobytes()


def live_rows(length: int, config: DebertaConfig) -> LiveRows:
    """Returns the part of the relative table that sequences of `length` tokens can reach."""
    index = relative_index(np.arange(length - 1, -length, -1), config)
    first, last = int(index.min()), int(index.max())
    return LiveRows(first, last + 1, index - first)
