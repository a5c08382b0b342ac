"""What the kernels share: how a call is cut into blocks, products of a block, its scores and its dropout mask."""

import dataclasses
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from ..random import bits_of_index

BLOCK = 64  # queries and keys of a block: the rows of one warp group's matrix product
SLOTS = 2  # blocks of keys in shared memory: one is read while the next one is copied
LOG2_E = math.log2(math.e)
_TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # of operands of the matrix unit


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is static about a call.

    Attributes:
      batch: sequences on this device.
      queries, keys: lengths, multiples of 64.
      heads: heads on this device.
      head_size: 64 or 128.
      dtype: bfloat16 or float16.
      scale: factor of the products of queries and keys.
      dropout_rate: share of the probabilities to drop; 0 disables dropout.
      whole: shape of all scores over all devices, without padding, which the dropout mask depends on.
      interpret: parameters of interpret mode, or None to compile.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    head_size: int
    dtype: Any
    scale: float
    dropout_rate: float
    whole: tuple[int, int, int, int]
    interpret: Any = None

    @property
    def grid(self) -> dict[str, Any]:
        """The grid: one program for each head, block of queries and sequence. Keys are read in a loop."""
        grid = (self.heads, self.queries // BLOCK, self.batch)
        return {"grid": grid, "grid_names": ("head", "block", "sequence")}

    @property
    def key_blocks(self) -> int:
        return self.keys // BLOCK

    def operand(self, *shape: int) -> Any:
        """Returns shared memory for an operand of the matrix unit."""
        return plgpu.SMEM(shape, self.dtype, transforms=_TRANSFORMS)


def product(left: Any, right: Any, shape: tuple[int, int]) -> jax.Array:
    """Returns a matrix product in float32. `left` is in shared memory or in registers, `right` in shared memory."""

    def run(accumulator: Any) -> jax.Array:
        plgpu.wgmma(accumulator, left, right)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def scores(plan: Plan, query: Any, key: Any, bias: jax.Array) -> jax.Array:
    """Returns scores of a block in units of log 2, so that `exp2` gives weights."""
    products = product(query, key.transpose((1, 0)), (BLOCK, BLOCK))
    return products * (plan.scale * LOG2_E) + bias.astype(jnp.float32) * LOG2_E


def rows_of(column: jax.Array, width: int) -> jax.Array:
    """Returns a number for each query, repeated along a row."""
    return jax.lax.broadcast_in_dim(column, (BLOCK, width), [0])


def keeps(plan: Plan, random_ref: Any, query_block: Any, key_block: Any) -> jax.Array:
    """Returns which probabilities of a block dropout keeps: those that `random.dropout` keeps in the whole array.

    Args:
      plan: the plan.
      random_ref: two seeds, the first head and the first sequence of this device, uint32.
      query_block, key_block: numbers of the blocks.
    """
    _, sequences, queries, keys = plan.whole
    head = jax.lax.axis_index("head").astype(jnp.uint32) + random_ref[2]
    sequence = jax.lax.axis_index("sequence").astype(jnp.uint32) + random_ref[3]
    first_query, first_key = (jnp.asarray(block * BLOCK, jnp.uint32) for block in (query_block, key_block))
    first = ((head * jnp.uint32(sequences) + sequence) * jnp.uint32(queries) + first_query) * jnp.uint32(
        keys
    ) + first_key
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, (BLOCK, BLOCK), axis) for axis in (0, 1))
    bits = bits_of_index(row * jnp.uint32(keys) + column + first, random_ref[0], random_ref[1])
    return bits >= jnp.uint32(round(plan.dropout_rate * 2**32))


def dropped(plan: Plan, kept: jax.Array, x: jax.Array) -> jax.Array:
    """Applies a dropout mask."""
    return jnp.where(kept, x * (1 / (1 - plan.dropout_rate)), 0.0)
