"""Random bits from integer hashes, and the dropout masks drawn from them.

A hash of an element's index gives the same bits however the array is sharded or tiled, and costs a few integer
operations per element. Both hashes are permutations of 32-bit integers with low bias, found by C. Wellons'
hash-prospector; neither is cryptographic.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, UInt32


def random_bits(shape: tuple[int, ...], key: PRNGKeyArray) -> UInt32[Array, "..."]:
    """Returns an array of the given shape: a hash of each element's flat index, modulo 2^32, and of the key.

    Costs about a twentieth of JAX's counter-based generator on a CPU.
    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    # The flat index is summed axis by axis and not reshaped, so that every device computes that of its own shard.
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    # The golden-ratio multiply spreads neighboring indices before the two rounds of multiply and xor-shift.
    mixed = index * jnp.uint32(0x9E3779B9) + seeds[0]
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x21F0AAAD)
    mixed = (mixed ^ (mixed >> 15)) + seeds[1]
    mixed *= jnp.uint32(0xD35A2D97)
    return mixed ^ (mixed >> 15)


def dropout(x: Float[Array, "*shape"], *, rate: float, key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """Inverted dropout (the original's StableDropout): zeroes a share `rate`, scales the others by 1 / (1 - rate)."""
    keep = random_bits(x.shape, key) >= jnp.uint32(round(rate * 2**32))
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
