"""Operations on tiles in vector registers that every kernel uses: products, packing, skewing.

All of them unroll at trace time into straight-line code. A block is 128 rows or lanes of a tile.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int32, Shaped

from ..random import dropout_salt, keep_mask
from .operands import Ref
from .plan import LANES, KernelPlan

VMEM_LIMIT = 64 * 2**20  # bytes; a kernel gets 16 MiB by default
MASKED = -1e30  # below every real score; finite, so that the difference of two masked scores is 0


def block_slice(block: int, count: int = 1) -> slice:
    """Slice of `count` blocks from `block`."""
    return slice(block * LANES, (block + count) * LANES)


def window_slice(base: Int32[Array, ""] | int, offset: int, size: int) -> Any:
    """Slice from base + offset. `base` is a multiple of 128: a number, or a scalar known when the kernel runs."""
    if isinstance(base, int):
        return slice(base + offset, base + offset + size)
    # Without the hint the compiler would have to load and shift unaligned rows.
    return pl.ds(pl.multiple_of(base + offset, LANES), size)


def only_head(
    plan: KernelPlan,
    x: Shaped[Array, "tokens 128"],
    head: int,
    others: Shaped[Array, "tokens 128"] | None = None,
) -> Shaped[Array, "tokens 128"]:
    """Replaces the lanes of the other heads by zero, or by those of `others`."""
    if plan.heads == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    of_head = (lane >= head * plan.head_size) & (lane < (head + 1) * plan.head_size)
    return jnp.where(of_head, x, jnp.zeros((), x.dtype) if others is None else others)


def product(
    left: Float[Array, "rows columns"] | Ref,
    right: Float[Array, "rows2 columns2"] | Ref,
    left_axis: int,
    right_axis: int,
) -> Float[Array, "left right"]:
    """Contracts one axis of each in float32."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)


def pack(plan: KernelPlan, slab: list[Float[Array, "128 lanes"]]) -> Int32[Array, "128 lanes"]:
    """Packs the blocks of a slab: one float32 block, or two as bfloat16 in the low and the high half.

    Rotates and transposes move 32 bits, so two blocks packed into one are moved at the price of one.
    """
    if len(slab) == 1:
        return jax.lax.bitcast_convert_type(slab[0], jnp.int32)
    if plan.pack_instruction:
        return pltpu.bitcast(pltpu.pack_elementwise(slab, packed_dtype=jnp.bfloat16), jnp.int32)
    low, high = (jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16).astype(jnp.float32), jnp.int32) for x in slab)
    return jax.lax.shift_right_logical(low, 16) | high


def unpack(x: Int32[Array, "128 lanes"], slab: tuple[int, ...], block: int) -> Float[Array, "128 lanes"]:
    """Returns one block of a packed slab as float32. A bfloat16 is the upper half of a float32."""
    if len(slab) == 2:
        x = x << 16 if block == slab[0] else x & -65536
    return jax.lax.bitcast_convert_type(x, jnp.float32)


def skew(plan: KernelPlan, x: Int32[Array, "128 offsets"]) -> Int32[Array, "128 C"]:
    """Moves scores by offset to scores by position: [128, C + 128] -> [128, C], out[r, j] = x[r, j + 128 - r].

    Row r reads the last r of the first 128 lanes and the first 128 - r of the last 128 lanes. These are complementary
    triangles of two blocks: merged into one block, a cyclic rotation of C lanes by r does the move.
    """
    row, lane = _row_and_lane()
    ends = jnp.where(lane + row >= LANES, x[:, :LANES], x[:, plan.chunk :])
    y = jnp.concatenate([x[:, LANES : plan.chunk], ends], axis=1) if plan.blocks > 1 else ends
    if plan.strided_roll:
        return pltpu.roll(y, 0, 1, stride=1, stride_axis=0)
    # v4: rotate within each block, then take the lanes that wrapped around from the block before.
    rotated = [jnp.take_along_axis(y[:, block_slice(j)], (lane - row) & 127, axis=1) for j in range(plan.blocks)]
    return jnp.concatenate([jnp.where(lane >= row, rotated[j], rotated[j - 1]) for j in range(plan.blocks)], axis=1)


def unskew(plan: KernelPlan, x: Int32[Array, "128 C"]) -> Int32[Array, "128 offsets"]:
    """The transpose of `skew`: [128, C] -> [128, C + 128]; zero at offsets without a position.

    A rotate with a negative stride does not compile, so every chip gathers within blocks here.
    """
    row, lane = _row_and_lane()
    wraps = lane + row >= LANES
    rotated = [jnp.take_along_axis(x[:, block_slice(j)], (lane + row) & 127, axis=1) for j in range(plan.blocks)]
    y = [jnp.where(wraps, rotated[(j + 1) % plan.blocks], rotated[j]) for j in range(plan.blocks)]
    zero = jnp.zeros((), x.dtype)
    return jnp.concatenate([jnp.where(wraps, y[-1], zero), *y[:-1], jnp.where(wraps, zero, y[-1])], axis=1)


def _row_and_lane() -> tuple[Int32[Array, "128 128"], Int32[Array, "128 128"]]:
    shape = (LANES, LANES)
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0), jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def head_salt(plan: KernelPlan, origin: Ref, sequence: Int32[Array, ""] | int, head: int) -> Int32[Array, ""]:
    """Returns the dropout salt of a head of a grid step. Axis 0 of every grid is the group of heads.

    Args:
      origin: int32 [3], the dropout seed and the numbers that the first sequence and the first head of this device
        have on the whole mesh.
    """
    return dropout_salt(origin[0], origin[1] + sequence, origin[2] + pl.program_id(0) * plan.heads + head)


def keep_block(
    plan: KernelPlan,
    salt: Int32[Array, ""],
    block: int,
    query_chunk: Int32[Array, ""] | int,
    key_chunk: Int32[Array, ""] | int,
) -> Bool[Array, "128 C"] | None:
    """Returns which probabilities of a key block dropout keeps, or None without dropout."""
    if not plan.drop_below:
        return None
    first_key, first_query = key_chunk * plan.chunk + block * LANES, query_chunk * plan.chunk
    return keep_mask(salt, first_key, first_query, queries=plan.chunk, length=plan.length, drop_below=plan.drop_below)
