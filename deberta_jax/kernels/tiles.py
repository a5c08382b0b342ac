"""What the forward and the backward kernel share: the plan of a call, and operations on tiles in registers.

Scores stand as [keys, queries], so that maxima and sums run down the sublanes and the log-sum-exp is a dense row.
128 lanes hold as many heads as fit (two of 64); a head is picked by zeroing the others' lanes on one side of a product.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
VMEM_LIMIT = 64 * 2**20  # bytes, in place of the 16 MiB that a kernel gets unasked
MASKED = -1e30  # a score that no real one comes near; finite, so that a difference of two is 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is static about a call. Lengths and head sizes are those after padding."""

    chunk: int  # C: a tile of scores is [C, C]; a multiple of 128
    chunks: int  # tiles along the queries, and along the keys: S = chunk * chunks
    head_size: int  # 32, 64 or 128
    scale: float  # of the scores; from the head size before padding
    c2p: bool
    p2c: bool
    dropout_rate: float
    packed: bool  # bfloat16: relative scores move as two bfloat16 in 32 bits
    strided_roll: bool  # False on v4, which has none
    pack_instruction: bool  # False in interpret mode, which has none

    @property
    def blocks(self) -> int:
        return self.chunk // LANES

    @property
    def length(self) -> int:
        return self.chunk * self.chunks

    @property
    def heads(self) -> int:
        """Heads in a grid step."""
        return LANES // self.head_size

    @property
    def slabs(self) -> list[tuple[int, ...]]:
        """Row blocks of a tile that are skewed together, last first."""
        width = 2 if self.packed else 1
        return [tuple(range(i, min(i + width, self.blocks))) for i in range(0, self.blocks, width)][::-1]

    @property
    def drop_below(self) -> int:
        """Of 65536 values of a hash, how many drop an element."""
        return round(self.dropout_rate * 2**16)

    @property
    def kept_share(self) -> float:
        return 1 - self.drop_below / 2**16

    def lanes(self, head: int) -> slice:
        return slice(head * self.head_size, (head + 1) * self.head_size)

    def pick(self, x: jax.Array, head: int, others=None) -> jax.Array:
        """x [rows, 128], the lanes of other heads zeroed or taken from `others`."""
        if self.heads == 1:
            return x
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        own = (lane >= head * self.head_size) & (lane < (head + 1) * self.head_size)
        return jnp.where(own, x, jnp.zeros((), x.dtype) if others is None else others)


def rows(block: int, count: int = 1) -> slice:
    """`count` blocks of 128 from `block` on."""
    return slice(block * LANES, (block + count) * LANES)


def product(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """Contracts one axis of each in float32."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def at(base, offset: int, size: int):
    """A slice from base + offset, base being a multiple of the chunk that is known when the kernel runs, or 0."""
    if isinstance(base, int):
        return slice(base + offset, base + offset + size)
    return pl.ds(pl.multiple_of(base + offset, LANES), size)


def pack(plan: Plan, tiles: list[jax.Array]) -> jax.Array:
    """One float32 tile, or two as bfloat16 halves, as int32."""
    if len(tiles) == 1:
        return jax.lax.bitcast_convert_type(tiles[0], jnp.int32)
    if plan.pack_instruction:
        return pltpu.bitcast(pltpu.pack_elementwise(tiles, packed_dtype=jnp.bfloat16), jnp.int32)
    low, high = (jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16).astype(jnp.float32), jnp.int32) for x in tiles)
    return jax.lax.shift_right_logical(low, 16) | high


def unpack(x: jax.Array, slab: tuple[int, ...], block: int) -> jax.Array:
    """The float32 tile of one of the slab's row blocks."""
    if len(slab) == 2:
        x = x << 16 if block == slab[0] else x & -65536
    return jax.lax.bitcast_convert_type(x, jnp.float32)


def _row_and_lane() -> tuple[jax.Array, jax.Array]:
    shape = (LANES, LANES)
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0), jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def skew(plan: Plan, x: jax.Array) -> jax.Array:
    """Lines distances up with positions: [128, C + 128] -> [128, C], out[r, j] = x[r, j + 128 - r].

    The first and the last 128 lanes fill complementary triangles, so that C lanes need rotating, row r by r.
    """
    row, lane = _row_and_lane()
    ends = jnp.where(lane + row >= LANES, x[:, :LANES], x[:, plan.chunk :])
    y = jnp.concatenate([x[:, LANES : plan.chunk], ends], axis=1) if plan.blocks > 1 else ends
    if plan.strided_roll:
        return pltpu.roll(y, 0, 1, stride=1, stride_axis=0)
    turned = [jnp.take_along_axis(y[:, rows(j)], (lane - row) & 127, axis=1) for j in range(plan.blocks)]
    return jnp.concatenate([jnp.where(lane >= row, turned[j], turned[j - 1]) for j in range(plan.blocks)], axis=1)


def unskew(plan: Plan, x: jax.Array) -> jax.Array:
    """The transpose of `skew`: [128, C] -> [128, C + 128], zero where no position is."""
    row, lane = _row_and_lane()
    wraps = lane + row >= LANES
    turned = [jnp.take_along_axis(x[:, rows(j)], (lane + row) & 127, axis=1) for j in range(plan.blocks)]
    y = [jnp.where(wraps, turned[(j + 1) % plan.blocks], turned[j]) for j in range(plan.blocks)]
    zero = jnp.zeros((), x.dtype)
    return jnp.concatenate([jnp.where(wraps, y[-1], zero), *y[:-1], jnp.where(wraps, zero, y[-1])], axis=1)


def _mix(x):
    """A 32-bit integer finalizer: every bit of the input reaches every bit of the output."""
    x = (x ^ jax.lax.shift_right_logical(x, 16)) * np.int32(0x7FEB352D)
    x = (x ^ jax.lax.shift_right_logical(x, 15)) * np.int32(0x846CA68B - 2**32)
    return x ^ jax.lax.shift_right_logical(x, 16)


def dropout_salt(seed, row, head):
    """What tells one sequence and head from another; row and head count over the whole mesh."""
    return _mix(_mix(_mix(seed) + row) + head)


def head_salt(plan: Plan, scalars, row, head: int):
    """The salt of one of the heads of a grid step, whose first axis is the group of heads."""
    return dropout_salt(scalars[0], scalars[1] + row, scalars[2] + pl.program_id(0) * plan.heads + head)


def kept(plan: Plan, salt, first_key, first_query) -> jax.Array:
    """Which probabilities dropout keeps: bool [128 keys, C queries], a hash of their positions, 16 bits an element."""
    half = (LANES // 2, plan.chunk)
    key = jax.lax.broadcasted_iota(jnp.int32, half, 0) + first_key
    query = jax.lax.broadcasted_iota(jnp.int32, half, 1) + first_query
    bits = _mix((key * plan.length + query) ^ salt)
    threshold = np.int32(plan.drop_below - 2**15)
    halves = [jnp.right_shift(bits, 16) >= threshold, jnp.right_shift(jnp.left_shift(bits, 16), 16) >= threshold]
    return jnp.concatenate(halves, axis=0)
