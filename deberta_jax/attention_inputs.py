"""What attention reads besides queries, keys and values, in one pytree."""

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .positions import LiveRows, SymbolicRows


@flax.struct.dataclass
class AttentionInputs:
    """Everything that attention reads besides queries, keys and values.

    A pytree: the arrays are its leaves, `live_rows` and `dropout_rate` are static.

    Attributes:
      query_segments, key_segments: a query sees the keys of its own segment; 0 is padding.
      pos_key: keys of the live rows of the relative table, or None without the c2p term.
      pos_query: queries of the same rows, or None without the p2c term.
      live_rows: which of these rows each distance reads; needed with either term.
      query_positions: position of each query among the S keys (default: query i is at position i, and T = S). Queries
        at the same position must be equal, since the kernel computes every position once.
      dropout_rate: share of the probabilities that dropout zeroes.
      dropout_key: key of the dropout mask (default: no dropout).
    """

    query_segments: Int[Array | np.ndarray, "B T"]
    key_segments: Int[Array | np.ndarray, "B S"]
    pos_key: Float[Array, "P N H"] | None = None
    pos_query: Float[Array, "P N H"] | None = None
    live_rows: LiveRows | SymbolicRows | None = flax.struct.field(pytree_node=False, default=None)
    query_positions: Int[Array | np.ndarray, "B T"] | None = None
    dropout_rate: float = flax.struct.field(pytree_node=False, default=0.0)
    dropout_key: PRNGKeyArray | None = None

    @property
    def position_terms(self) -> int:
        """Number of position terms in a score: 0, 1 or 2."""
        return (self.pos_key is not None) + (self.pos_query is not None)
