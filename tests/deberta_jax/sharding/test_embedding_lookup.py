"""The embedding look-up and its gradient are the same on every mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from deberta_jax.sharding import lookup, make_mesh, partition_spec


@pytest.mark.parametrize("batch", [8, 64], ids=["vectors are exchanged", "the table is exchanged"])
@pytest.mark.parametrize("sizes", [{"zero": 4}, {"zero": 2, "fsdp": 4}, {"zero": 2, "fsdp": 2, "tensor": 2}])
def test_look_up_and_gradient_do_not_depend_on_the_mesh(sizes: dict[str, int], batch: int) -> None:
    table, path = jax.random.normal(jax.random.key(1), (64, 32)), "word_embeddings/embedding"
    ids = jax.random.randint(jax.random.key(0), (batch, 12), -3, 67)  # some are outside the table
    cotangent = jax.random.normal(jax.random.key(2), (*ids.shape, 32))

    def vectors_and_gradient(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        vectors, pull_back = jax.vjp(lambda table: lookup(table, ids, path=path), table)
        return vectors, pull_back(cotangent)[0]

    expected, expected_gradient = vectors_and_gradient(table, ids)
    inside = ((ids >= 0) & (ids < 64))[..., None]
    np.testing.assert_array_equal(expected, np.where(inside, table[np.clip(ids, 0, 63)], np.nan))
    added = np.zeros_like(table)
    np.add.at(added, np.clip(ids, 0, 63), np.where(inside, cotangent, 0))
    np.testing.assert_allclose(expected_gradient, added, atol=2e-5)
    mesh = make_mesh(**sizes)
    moment = NamedSharding(mesh, partition_spec(path, table.shape, mesh, moment=True))
    with jax.set_mesh(mesh):
        for function in (jax.jit(vectors_and_gradient), vectors_and_gradient):
            vectors, gradient = function(table, ids)
            np.testing.assert_array_equal(vectors, expected)
            np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)
            assert gradient.sharding.shard_shape(gradient.shape) == moment.shard_shape(gradient.shape)
