"""Each process feeds its rows of a batch, and the mesh holds the whole batch."""

import math

import numpy as np
import pytest

from deberta_jax.sharding import (
    BATCH_AXES,
    batch_devices,
    batch_sharding,
    local_batch_indices,
    make_mesh,
    place_batch,
)


@pytest.mark.parametrize("sizes", [{}, {"zero": 2, "tensor": 2}, {"zero": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}])
def test_placed_batch_equals_the_rows_that_were_fed(sizes: dict[str, int]) -> None:
    mesh = make_mesh(**sizes)
    assert batch_devices(mesh) == 8 // sizes.get("tensor", 1) == math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    indices = local_batch_indices(mesh, 16)
    assert indices.dtype == np.int64
    assert indices.tolist() == list(range(16))  # a single process feeds all rows
    ids = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
    placed = place_batch({"ids": ids[indices], "labels": ids[indices, 0]}, mesh)
    np.testing.assert_array_equal(placed["ids"], ids)
    np.testing.assert_array_equal(placed["labels"], ids[:, 0])
    assert placed["ids"].sharding == batch_sharding(mesh)


def test_batch_that_does_not_divide_is_an_error() -> None:
    mesh = make_mesh(zero=2, tensor=2)
    with pytest.raises(ValueError, match=r"a batch of 10 rows does not divide over 4 devices .* a multiple of 4"):
        local_batch_indices(mesh, 10)
    with pytest.raises(ValueError, match=r"ids has 10 rows, which do not divide over the 4 shards"):
        place_batch({"ids": np.zeros((10, 2))}, mesh)
