"""Checksums of a tree of arrays: computed on the devices, the same on every mesh and number of processes."""

from typing import Any

import jax
import jax.numpy as jnp


def describe_leaves(tree: Any, *, checksums: bool = False) -> dict[str, dict]:
    """Path of each leaf -> its shape and dtype, and its checksum where asked."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    described = {leaf_name(path): {"shape": list(x.shape), "dtype": str(x.dtype)} for path, x in leaves}
    if checksums:
        # One program per shape, not one for the tree: a large model has many leaves and few shapes.
        values = jax.device_get([checksum(x) for _, x in leaves])
        for leaf, value in zip(described.values(), values, strict=True):
            leaf["checksum"] = int(value)
    return described


def leaf_name(path: tuple) -> str:
    """The key path of a leaf as `params/dense/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@jax.jit
def checksum(x: jax.Array) -> jax.Array:
    """Checksum of an array of any shape with 1-, 2- or 4-byte elements: uint32 scalar.

    Each element's bits are mixed with its row-major index by an invertible hash (the finalizer of MurmurHash3) and
    added modulo 2^32. Adding integers commutes, so the value does not depend on the mesh; a change of one
    element always changes it, and a change of several goes unseen once in 2^32.

    Raises:
      TypeError: elements of another size.
    """
    if x.dtype.itemsize > 4:
        raise TypeError(f"cannot checksum {x.dtype}; a training state has elements of 1, 2 or 4 bytes")
    bits = x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = bits.astype(jnp.uint32) + _mix(index)
    return _mix(mixed).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
