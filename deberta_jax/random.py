"""Random bits from integer hashes, and the dropout masks drawn from them.

A hash of an element's index gives the same bits however the array is sharded or tiled, and costs a few integer
operations per element. Both hashes are permutations of 32-bit integers with low bias, found by C. Wellons'
hash-prospector; neither is cryptographic.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, UInt32


class Part(NamedTuple):
    """Which part of a larger array an array is, so that its elements get the random bits that they have in the whole.

    Attributes:
      start: index of its first element in the larger array.
      whole: shape of the larger array.
    """

    start: Sequence[Int[Array, ""] | int]
    whole: tuple[int, ...]


def random_bits(shape: tuple[int, ...], key: PRNGKeyArray, *, part: Part | None = None) -> UInt32[Array, "..."]:
    """Returns an array of the given shape: a hash of each element's flat index, modulo 2^32, and of the key.

    Costs about a twentieth of JAX's counter-based generator on a CPU.

    Args:
      shape: shape of the result.
      key: random key.
      part: which part of a larger array this is (default: an array of its own).
    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    return element_bits(shape, seeds[0], seeds[1], part=part)


def element_bits(
    shape: tuple[int, ...],
    first_seed: UInt32[Array, ""],
    second_seed: UInt32[Array, ""],
    *,
    part: Part | None = None,
) -> UInt32[Array, "..."]:
    """Returns `random_bits` for two seeds in place of a key."""
    start, whole = ((0,) * len(shape), shape) if part is None else part
    # The flat index is summed axis by axis and not reshaped, so that every device computes that of its own shard.
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + jnp.asarray(start[axis], jnp.uint32)
        index += position * jnp.uint32(stride % 2**32)
        stride *= whole[axis]
    return bits_of_index(index, first_seed, second_seed)


def bits_of_index(
    index: UInt32[Array, "*shape"], first_seed: UInt32[Array, ""], second_seed: UInt32[Array, ""]
) -> UInt32[Array, "*shape"]:
    """Returns a hash of each index and of two seeds."""
    # The golden-ratio multiply spreads neighboring indices before the two rounds of multiply and xor-shift.
    mixed = index * jnp.uint32(0x9E3779B9) + first_seed
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x21F0AAAD)
    mixed = (mixed ^ (mixed >> 15)) + second_seed
    mixed *= jnp.uint32(0xD35A2D97)
    return mixed ^ (mixed >> 15)


class SlotSeeds(NamedTuple):
    """Two random numbers for each masked slot, from which `gumbel_noise` makes the noise of every word."""

    first: Int32[Array, "*slots"]
    second: Int32[Array, "*slots"]

    @classmethod
    def draw(cls, shape: tuple[int, ...], key: PRNGKeyArray) -> "SlotSeeds":
        """Draws the seeds of an array of slots."""
        bits = (random_bits(shape, part_key) for part_key in jax.random.split(key))
        return cls(*(jax.lax.bitcast_convert_type(x, jnp.int32) for x in bits))


GOLDEN_RATIO = np.int32(0x9E3779B9 - 2**32)


def gumbel_noise(words: Int[Array, "..."], seeds: SlotSeeds) -> Float[Array, "..."]:
    """Returns noise of the standard Gumbel distribution, float32; words and seeds are broadcast.

    The noise depends only on a slot's seeds and on a word's id, not on the part of the vocabulary that is visited.
    """
    return gumbel_of_mixed(words.astype(jnp.int32) * GOLDEN_RATIO + seeds.first, seeds.second)


def gumbel_of_mixed(mixed: Int32[Array, "..."], second: Int32[Array, "..."]) -> Float[Array, "..."]:
    """Returns `gumbel_noise` from mixed = words * GOLDEN_RATIO + seeds.first and from seeds.second.

    A kernel adds `mixed` up in steps. The rest is `bits_of_index` with signed numbers, without its last xor-shift,
    which changes only the lower bits; and -log of a number of the exponential distribution.
    """
    shift = jax.lax.shift_right_logical
    mixed = (mixed ^ shift(mixed, 16)) * np.int32(0x21F0AAAD)
    mixed = (mixed ^ shift(mixed, 15)) + second
    mixed = mixed * np.int32(0xD35A2D97 - 2**32)
    # Uniform from 0 to 2^31. 1 minus a small number has too few digits for the highest noise, which comes from these.
    uniform = shift(mixed, 1).astype(jnp.float32) + 0.5
    exponential = jnp.where(
        uniform < 2.0**21, uniform * (2.0**-31 + uniform * 2.0**-63), -jnp.log(1 - uniform * 2.0**-31)
    )
    return -jnp.log(exponential)


def normal_initializer(stddev: float) -> Callable[..., Float[Array, "..."]]:
    """Returns an initializer for parameters: draws of a normal distribution with mean 0, by (key, shape, dtype).

    Outside of jit it compiles one program for each distinct shape, and draws the same numbers as inside.
    """
    return functools.partial(_normal, stddev=stddev)


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "stddev"))
def _normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype, *, stddev: float) -> Float[Array, "..."]:
    return stddev * jax.random.normal(key, shape, dtype)


def dropout(
    x: Float[Array, "*shape"], *, rate: float, key: PRNGKeyArray, part: Part | None = None
) -> Float[Array, "*shape"]:
    """Inverted dropout (the original's StableDropout): zeroes a share `rate`, scales the others by 1 / (1 - rate).

    Args:
      x: any array.
      rate: share of the elements that are zeroed.
      key: random key.
      part: which part of a larger array `x` is (default: an array of its own).
    """
    keep = random_bits(x.shape, key, part=part) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * (1 / (1 - rate)), jnp.zeros((), x.dtype))


def dropout_salt(seed: Int32[Array, ""], sequence: Int32[Array, ""], head: Int32[Array, ""] | int) -> Int32[Array, ""]:
    """Hashes a seed with the number of a sequence and of a head; on a mesh, both are counted over the whole mesh."""
    return _lowbias32(_lowbias32(_lowbias32(seed) + sequence) + head)


def keep_mask(
    salt: Int32[Array, ""],
    first_key: Int32[Array, ""] | int,
    first_query: Int32[Array, ""] | int,
    *,
    queries: int,
    length: int,
    drop_below: int,
) -> Bool[Array, "128 queries"]:
    """Returns which attention probabilities of 128 keys and some queries dropout keeps.

    Forward and backward kernel draw the same mask although they visit its tiles in another order: a bit depends only
    on the salt and on the positions of query and key. One hash serves two keys, 16 bits each, since the hash is what
    dropout in a kernel costs.

    Args:
      salt: the `dropout_salt` of a sequence and head.
      first_key: position of the first key, a multiple of 128.
      first_query: position of the first query.
      queries: number of queries.
      length: tokens of the sequence after padding.
      drop_below: number of the 65536 values of 16 bits that drop an element.
    """
    half = (64, queries)
    key = jax.lax.broadcasted_iota(jnp.int32, half, 0) + first_key
    query = jax.lax.broadcasted_iota(jnp.int32, half, 1) + first_query
    bits = _lowbias32((key * length + query) ^ salt)
    # Both halves are compared as signed numbers, from -2^15: the threshold is moved by half the range.
    threshold = np.int32(drop_below - 2**15)
    halves = [jnp.right_shift(bits, 16) >= threshold, jnp.right_shift(jnp.left_shift(bits, 16), 16) >= threshold]
    return jnp.concatenate(halves, axis=0)


def _lowbias32(x: Int32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """Wellons' `lowbias32` on int32: every bit of the input changes about half of the bits of the output."""
    x = (x ^ jax.lax.shift_right_logical(x, 16)) * np.int32(0x7FEB352D)
    x = (x ^ jax.lax.shift_right_logical(x, 15)) * np.int32(0x846CA68B - 2**32)
    return x ^ jax.lax.shift_right_logical(x, 16)
