"""Checksums of arrays: they change with every bit and do not depend on the sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax.checksums import checksum, describe_leaves, host_checksum, tree_digest


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint32, jnp.bool_])
def test_checksum_changes_with_one_bit_and_with_the_order(dtype) -> None:
    values = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 6)), dtype)
    before = checksum(values)
    assert checksum(values + 0) == before
    assert checksum(values[::-1]) != before
    assert checksum(values.reshape(6, 5)) == before  # row-major order, whatever the shape
    flipped = np.asarray(values).copy()
    flipped.view(np.uint8).reshape(-1)[0] ^= 1
    assert checksum(flipped) != before
    assert host_checksum(np.asarray(values)) == before


def test_both_checksums_of_arrays_of_any_shape_are_equal() -> None:
    for shape in [(), (1,), (0, 3), (70_000, 3), (2, 3, 4, 5)]:
        values = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
        assert host_checksum(np.asarray(values)) == int(checksum(values))
        assert host_checksum(np.asarray(values.T)) == int(checksum(values.T))


def test_checksum_does_not_depend_on_the_sharding() -> None:
    values = jax.random.normal(jax.random.key(0), (8, 6))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(values, NamedSharding(mesh, PartitionSpec("data")))
    assert describe_leaves({"x": sharded}, checksums=True) == describe_leaves({"x": values}, checksums=True)


def test_wide_elements_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot checksum complex64; a training state has elements of 1, 2 or 4 bytes"):
        checksum(jnp.zeros(3, jnp.complex64))


def test_the_digest_of_a_tree_has_its_names_shapes_dtypes_and_values() -> None:
    tree = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    others = [
        {"dense": {"kernel": jnp.ones((2, 3)), "scale": jnp.zeros(3)}},
        {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(3)}},
        {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3, jnp.int32)}},
        {"dense": {"kernel": jnp.ones((2, 3)).at[1, 2].set(1 + 2**-23), "bias": jnp.zeros(3)}},
    ]
    assert len({tree_digest(one) for one in (tree, *others)}) == 5
    assert tree_digest({"dense": dict(reversed(tree["dense"].items()))}) == tree_digest(tree)
