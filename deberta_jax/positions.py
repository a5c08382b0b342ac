"""Relative positions: which row of the relative table a distance reads. NumPy on the host, never in the graph.

A float32 logarithm inside the compiled program puts some distances into the wrong bucket (on XLA CPU 511 of
(128, 512), for one), and a TPU's logarithm is another approximation still. So every index here is a constant that
is computed once in float64. Where the length is a variable of `jax.export`, the constant has the row of every distance
that the model tells apart, and the compiled program looks distances up in it.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jaxtyping import Array, Int, Int32

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

    @property
    def positions(self) -> Int[np.ndarray, "S"]:
        """0 to S - 1."""
        return np.arange(self.length)

    @property
    def table_rows(self) -> Int[Array, "live"]:
        """The reachable rows of `rel_embeddings`."""
        return jnp.arange(self.start, self.stop)

    @property
    def c2p_columns(self) -> Int[np.ndarray, "distances"]:
        """The rows of distances S - 1 and down: `position_scores.relative_shift` moves their products to the keys."""
        return self.row_of_distance

    @property
    def p2c_columns(self) -> Int[np.ndarray, "distances"]:
        """The rows of distances 1 - S and up: `position_scores.relative_shift` moves their products to the queries."""
        return self.row_of_distance[::-1]

    def row_of_pair(self) -> Int[np.ndarray, "S S"]:
        """Returns the row that each pair of a query and a key reads."""
        index = np.arange(self.length)
        return self.row_of_distance[self.length - 1 - index[:, None] + index]

    def rows_of(self, distance: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Returns the rows that distances read, which are values of the compiled program."""
        return jnp.asarray(self.row_of_distance)[self.length - 1 - distance]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LiveRows) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, int, bytes]:
        return self.start, self.stop, self.row_of_distance.tobytes()


@dataclasses.dataclass(frozen=True)
class SymbolicRows:
    """What `LiveRows` describes, for sequences whose length is a variable of `jax.export`.

    The arrays are values of the compiled program.

    Attributes:
      length: S, an expression of `jax.export`.
      config: The configuration, which says how distances are put into buckets.
    """

    length: Any
    config: DebertaConfig

    @property
    def positions(self) -> Int[Array, "S"]:
        """0 to S - 1."""
        return jnp.arange(self.length)

    @property
    def table_rows(self) -> Int[Array, "live"]:
        """Rows of `rel_embeddings`, those that can be reached among them: the S nearest ones on either side."""
        span, reach = self.config.att_span, self.config.relative_reach
        distances = np.arange(-reach, reach + 1)
        if (np.abs(relative_index(distances, self.config) - span) > np.abs(distances)).any():
            return jnp.arange(2 * span)  # buckets that are farther than their distances, in a table of odd sizes
        upper = jnp.arange(span, 2 * span)[: self.length]  # a slice ends where the array does
        lower = jnp.arange(span)[::-1][: self.length]
        return jnp.concatenate([lower[::-1], upper])

    # One column more than LiveRows has, which the shift drops: with it the shift works for a single token, too.

    @property
    def c2p_columns(self) -> Int[Array, "distances"]:
        """The rows of distances S - 1 and down: `position_scores.relative_shift` moves their products to the keys."""
        return self.rows_of(self.length - 1 - jnp.arange(2 * self.length))

    @property
    def p2c_columns(self) -> Int[Array, "distances"]:
        """The rows of distances 1 - S and up: `position_scores.relative_shift` moves their products to the queries."""
        return self.rows_of(jnp.arange(2 * self.length) - (self.length - 1))

    def row_of_pair(self) -> Int[Array, "S S"]:
        """Returns the row that each pair of a query and a key reads."""
        return self.rows_of(self.positions[:, None] - self.positions)

    def rows_of(self, distance: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Returns the rows that distances read, counted from the first one of `table_rows`."""
        reach = self.config.relative_reach  # all distances beyond it read the same row
        table = jnp.asarray(relative_index(np.arange(-reach, reach + 1), self.config))
        rows = table[jnp.clip(distance, -reach, reach) + reach] - self.table_rows[0]
        return jnp.clip(rows, 0, self.table_rows.shape[0] - 1)  # distance -S of the additional column


def live_rows(length: Any, config: DebertaConfig) -> LiveRows | SymbolicRows:
    """Returns the part of the relative table that sequences of `length` tokens can reach.

    Args:
      length: A number of tokens, or an expression of `jax.export.symbolic_shape`.
      config: The configuration.
    """
    if is_symbolic_dim(length):
        return SymbolicRows(length, config)
    index = relative_index(np.arange(length - 1, -length, -1), config)
    first, last = int(index.min()), int(index.max())
    return LiveRows(first, last + 1, index - first)
