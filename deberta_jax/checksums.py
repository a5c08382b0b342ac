"""Checksums of a tree of arrays: computed on the devices, equal on every mesh and number of processes."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from .sharding import parameter_path


def describe_leaves(tree: Any, *, checksums: bool = False) -> dict[str, dict]:
    """Returns the shape and dtype of every leaf of a tree, as JSON values under the path of the leaf.

    Args:
      tree: arrays, or jax.ShapeDtypeStruct.
      checksums: whether to add the checksum of every leaf, which has to be an array. All processes must then call this
        function together.

    Raises:
      TypeError: if a leaf with a checksum has elements of more than 4 bytes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    described = {parameter_path(path): {"shape": list(x.shape), "dtype": str(x.dtype)} for path, x in leaves}
    if checksums:
        # One program for each shape, not one for the tree: a large model has many leaves but few shapes.
        values = jax.device_get([checksum(x) for _, x in leaves])
        for leaf, value in zip(described.values(), values, strict=True):
            leaf["checksum"] = int(value)
    return described


def tree_digest(tree: Any) -> str:
    """Returns a digest of the names, shapes, dtypes and values of a tree of arrays, in hexadecimal.

    All processes must call this function together. Raises the error of `describe_leaves`.
    """
    return hashlib.sha256(json.dumps(describe_leaves(tree, checksums=True), sort_keys=True).encode()).hexdigest()


@jax.jit
def checksum(x: Shaped[Array | np.ndarray, "*shape"]) -> UInt32[Array, ""]:
    """Returns the checksum of an array whose elements have 1, 2 or 4 bytes.

    The bits of each element are mixed with its row-major index by an invertible hash (the finalizer of MurmurHash3),
    and the results are added modulo 2^32. Integer addition commutes, so the checksum does not depend on how the array
    is sharded. A change of one element always changes the checksum; a change of several elements goes unnoticed with
    probability 2^-32.

    Raises:
      TypeError: the elements have another size.
    """
    if x.dtype.itemsize > 4:
        raise TypeError(f"cannot checksum {x.dtype}; a training state has elements of 1, 2 or 4 bytes")
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jnp.asarray(x) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, unsigned)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return _mix(bits.astype(jnp.uint32) + _mix(index)).sum(dtype=jnp.uint32)


def host_checksum(x: Shaped[np.ndarray, "*shape"]) -> int:
    """Returns the value of `checksum`, computed by NumPy: it does not wait for the devices."""
    bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    index = np.arange(x.size, dtype=np.uint32)
    return int(_mix(bits.astype(np.uint32) + _mix(index)).sum(dtype=np.uint32))


def _mix(x: Any) -> Any:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
