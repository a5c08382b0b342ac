"""The plan of a kernel call: everything about it that is static, and what the kernels support."""

import dataclasses
from typing import Any, Self

import jax.numpy as jnp

from ..config import DebertaConfig

LANES = 128  # of a vector register, and of one side of the matrix unit's weights
HEAD_SIZES = (32, 64, 128)  # other sizes are padded to the next of these
_MAX_BLOCKS = 4  # a tile is at most 512 x 512: a larger one is no faster, and its program grows with its area
_V4_LENGTH = 2048  # in bfloat16: the tables of a longer sequence do not fit into the 16 MiB of VMEM of a v4


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """Everything that is static about a call of the kernels. Lengths and head sizes are those after padding.

    Attributes:
      chunk: C, a multiple of 128: a tile is C queries by C keys.
      chunks: tiles along the queries, and along the keys: S = chunk * chunks.
      head_size: 32, 64 or 128.
      scale: factor of the scores, from the head size before padding.
      c2p, p2c: whether the scores have these terms.
      dropout_rate: share of the probabilities to drop; 0 disables dropout.
      keeps: the forward kernel writes the probabilities, and the backward kernel reads them instead of computing them
        again. Only where a sequence is one chunk.
      far: a query and a key chunk that are at least so many chunks apart are far: all their distances read one row of
        the relative table. `chunks` if no two chunks are far.
      packed: relative scores are skewed as two bfloat16 numbers in 32 bits (bfloat16 inputs only).
      strided_roll: the chip can rotate row r by r lanes (all but v4).
      pack_instruction: the chip can pack two floats into 32 bits (all but interpret mode).
    """

    chunk: int
    chunks: int
    head_size: int
    scale: float
    c2p: bool
    p2c: bool
    dropout_rate: float
    keeps: bool
    far: int
    packed: bool
    strided_roll: bool
    pack_instruction: bool

    @classmethod
    def create(
        cls,
        *,
        length: int,
        head_size: int,
        dtype: Any,
        device_kind: str,
        c2p: bool = True,
        p2c: bool = True,
        dropout_rate: float = 0.0,
        keep_probabilities: bool = False,
    ) -> Self:
        """Plans a call for sequences of `length` tokens, heads of `head_size` and a kind of device as JAX names it.

        A device that is not a TPU means TPU interpret mode. `keep_probabilities` is ignored for sequences of several
        chunks.
        """
        chunk, chunks = tiling(length, dtype, device_kind)
        return cls(
            chunk=chunk,
            chunks=chunks,
            head_size=_padded_head_size(head_size),
            scale=(head_size * (1 + c2p + p2c)) ** -0.5,
            c2p=c2p,
            p2c=p2c,
            dropout_rate=dropout_rate,
            keeps=keep_probabilities and chunks == 1,
            far=chunks,
            packed=dtype == jnp.bfloat16,
            strided_roll="v4" not in device_kind,
            pack_instruction="TPU" in device_kind,
        )

    @property
    def blocks(self) -> int:
        """Blocks of 128 along each side of a tile."""
        return self.chunk // LANES

    @property
    def length(self) -> int:
        """S, tokens of a sequence."""
        return self.chunk * self.chunks

    @property
    def heads(self) -> int:
        """Heads per grid step: as many as fill 128 lanes."""
        return LANES // self.head_size

    @property
    def slabs(self) -> list[tuple[int, ...]]:
        """The blocks of a tile that are skewed together, last slab first."""
        width = 2 if self.packed else 1
        return [tuple(range(i, min(i + width, self.blocks))) for i in range(0, self.blocks, width)][::-1]

    @property
    def drop_below(self) -> int:
        """How many of the 65536 values of a 16-bit hash drop a probability."""
        return round(self.dropout_rate * 2**16)

    @property
    def kept_share(self) -> float:
        """Share of the probabilities that dropout keeps: the rate is rounded to 16 bits."""
        return 1 - self.drop_below / 2**16

    def lanes(self, head: int) -> slice:
        """Lanes of a head among the 128 of a grid step."""
        return slice(head * self.head_size, (head + 1) * self.head_size)


def _padded_head_size(size: int) -> int:
    return next(allowed for allowed in HEAD_SIZES if allowed >= size)


def tiling(length: int, dtype: Any, device_kind: str) -> tuple[int, int]:
    """Returns (chunk, chunks) for a sequence length: as few tiles as possible, each as small as possible."""
    narrow = "v4" in device_kind and (length > _V4_LENGTH // 2 or dtype == jnp.float32)  # v4 has less VMEM
    blocks = -(-length // LANES)
    chunks = -(-blocks // (_MAX_BLOCKS // 2 if narrow else _MAX_BLOCKS))
    return -(-blocks // chunks) * LANES, chunks


def unsupported(length: int, head_size: int, dtype: Any, device_kind: str) -> str | None:
    """Returns why the kernels do not support these sizes and this dtype on a kind of TPU, or None if they do.

    Another `device_kind` means interpret mode, which has no limits.
    """
    if head_size > HEAD_SIZES[-1]:
        return f"the head size is {head_size} and the kernel takes at most {HEAD_SIZES[-1]}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype is {jnp.dtype(dtype)} and the kernel takes float32 or bfloat16"
    longest = _V4_LENGTH if dtype == jnp.bfloat16 else _V4_LENGTH // 2
    if "v4" in device_kind and length > longest:
        return f"there are {length} tokens and on TPU v4 the kernel takes at most {longest} of this dtype"
    return None


def kept_bytes(config: DebertaConfig, batch: int, length: int, *, dtype: Any, device_kind: str) -> int:
    """Returns the bytes that one layer takes to keep its probabilities, or 0 where the kernels cannot keep them.

    Args:
      config: of the model.
      batch: sequences on one device.
      length: tokens of a sequence.
      dtype: of the computation.
      device_kind: kind of the device, as JAX names it.
    """
    size = config.attention_head_size
    if unsupported(length, size, dtype, device_kind) is not None:
        return 0
    plan = KernelPlan.create(
        length=length, head_size=size, dtype=dtype, device_kind=device_kind, keep_probabilities=True
    )
    if not plan.keeps:
        return 0
    heads = -(-config.num_attention_heads // plan.heads) * plan.heads
    column = plan.length * jnp.dtype(dtype).itemsize + plan.blocks * 4  # weights and maxima of one query
    return batch * heads * plan.length * column
