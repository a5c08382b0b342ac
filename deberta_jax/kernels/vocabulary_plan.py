"""The plan of the vocabulary kernels: what is static about a call, what they support, their operands in VMEM."""

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from .operands import Ref
from .plan import LANES
from .tiles import MASKED

SUBLANES = 8  # of a float32 vector register
# In bfloat16; blocks and tiles of float32 have half of these sizes.
_WORDS = 1024  # of a block; a multiple of 256
_SLOTS = 640  # of a tile at most
_FORWARD_SLOTS = 1280  # the same of the forward kernel, whose first and last products run beside nothing
_GRADIENT_BYTES = 16 * 2**20  # of VMEM, for the gradient of the hidden states
_LARGEST_WIDTH = 1536  # of a released model; wider embeddings were not compiled


@dataclasses.dataclass(frozen=True)
class VocabularyPlan:
    """Everything that is static about a call of the vocabulary kernels.

    Attributes:
      vocabulary: V, words of the table (of a device's shard of it).
      words: W, words of a block.
      slots: T, slots of a tile.
      tiles: number of tiles; slots are padded to T * tiles.
      width: D, features of a word.
      dtype: of the products.
    """

    vocabulary: int
    words: int
    slots: int
    tiles: int
    width: int
    dtype: Any

    @classmethod
    def create(cls, *, vocabulary: int, slots: int, width: int, dtype: Any, backward: bool = False) -> Self:
        """Plans a call of the forward or the backward kernel for a number of slots."""
        narrow = 2 if dtype == jnp.float32 else 1
        tiles = -(-slots * narrow // (_SLOTS if backward else _FORWARD_SLOTS))
        return cls(
            vocabulary=vocabulary,
            words=min(_WORDS // narrow, _round_up(vocabulary)),
            slots=_round_up(-(-slots // tiles)),
            tiles=tiles,
            width=width,
            dtype=jnp.dtype(dtype),
        )

    @property
    def blocks(self) -> int:
        """Number of blocks of words; the last one may be incomplete."""
        return -(-self.vocabulary // self.words)

    @property
    def padded_slots(self) -> int:
        """Number of slots with padding."""
        return self.slots * self.tiles


class OperandSpecs(NamedTuple):
    """The part of each operand of both kernels that a grid step (block of words, tile of slots) has in VMEM.

    Attributes:
      table: [W, D].
      bias: [1, W].
      hidden: [D, T].
      slots: [1, T], of numbers for each slot.
    """

    table: Any
    bias: Any
    hidden: Any
    slots: Any


def operand_specs(plan: VocabularyPlan) -> OperandSpecs:
    """Returns the blocks of the operands of a call."""
    return OperandSpecs(
        table=pl.BlockSpec((plan.words, plan.width), lambda block, tile, *_: (block, 0)),
        bias=pl.BlockSpec((1, plan.words), lambda block, tile, *_: (0, block)),
        hidden=pl.BlockSpec((plan.width, plan.slots), lambda block, tile, *_: (0, tile)),
        slots=pl.BlockSpec((1, plan.slots), lambda block, tile, *_: (0, tile)),
    )


def slots_per_call(width: int) -> int:
    """Returns how many slots one call can take: it keeps the float32 gradient of their hidden states in VMEM."""
    return _GRADIENT_BYTES // (4 * width) // _SLOTS * _SLOTS


def unsupported(width: int, dtype: Any, device_kind: str) -> str | None:
    """Returns why the kernels do not support this width and dtype on a kind of TPU, or None if they do.

    Another `device_kind` means interpret mode, which has no limits.
    """
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype is {jnp.dtype(dtype)} and the kernel takes float32 or bfloat16"
    if "TPU" not in device_kind:
        return None
    if "v4" in device_kind:
        return "the kernel needs more than the 16 MiB of VMEM of a TPU v4"
    if width % LANES or width > _LARGEST_WIDTH:
        return f"the embedding size is {width} and the kernel takes multiples of {LANES} up to {_LARGEST_WIDTH}"
    return None


def _round_up(count: int) -> int:
    return -(-count // LANES) * LANES


class WordScratch(NamedTuple):
    """A block of words in VMEM, written once and read by all tiles of slots.

    Attributes:
      words: [W, D] in the dtype of the products, see `read_words`; zero after the last word.
      bias: float32 [W, 128], the same in all lanes.
    """

    words: Any
    bias: Any


def load_words(plan: VocabularyPlan, block: Any, table: Ref, bias: Ref, scratch: WordScratch) -> None:
    """Casts a block of the table and spreads its biases over the lanes.

    The end of an incomplete last block has undefined contents, possibly NaN: it is replaced by zeros.

    Args:
      table: [W, D].
      bias: float32 [1, W], `MASKED` after the last word.
    """
    words = table[...]
    if plan.vocabulary % plan.words:
        row = jax.lax.broadcasted_iota(jnp.int32, words.shape, 0)
        words = jnp.where(row < plan.vocabulary - block * plan.words, words, jnp.zeros((), words.dtype))
    narrow = words.astype(plan.dtype)
    scratch.words[...] = pltpu.bitcast(narrow, jnp.int32) if _is_packed(plan) else narrow
    scratch.bias[...] = jnp.broadcast_to(bias[...], (LANES, plan.words)).T


def read_words(plan: VocabularyPlan, scratch: WordScratch) -> Float[Array, "words D"]:
    """Returns the block of words in the dtype of the products."""
    return pltpu.bitcast(scratch.words[...], plan.dtype) if _is_packed(plan) else scratch.words[...]


def word_scratch(plan: VocabularyPlan) -> WordScratch:
    """Returns the memory for a block of words."""
    words = pltpu.VMEM((plan.words, plan.width), plan.dtype)
    packed = pltpu.VMEM((plan.words // 2, plan.width), jnp.int32)
    return WordScratch(packed if _is_packed(plan) else words, pltpu.VMEM((plan.words, LANES), jnp.float32))


def _is_packed(plan: VocabularyPlan) -> bool:
    """Whether two rows of words are stored as one of integers.

    The compiler keeps bfloat16 in tiles of half a register, and would join two halves for every product.
    """
    return plan.dtype == jnp.bfloat16


def pad_bias(plan: VocabularyPlan, bias: Float[Array, "V"]) -> Float[Array, "1 words"]:
    """Returns the biases for complete blocks, such that no word after the last one is drawn or has a probability."""
    missing = plan.words * plan.blocks - plan.vocabulary
    return jnp.pad(bias, (0, missing), constant_values=MASKED)[None]
