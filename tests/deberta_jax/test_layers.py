"""Dense layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.layers import Dense

from ..support.small_models import SMALL


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 8), (3, 8)])
def test_a_dense_layer_is_the_matrix_product_and_lowers_to_the_same_program(dtype, shape: tuple[int, ...]) -> None:
    """qwix needs `dot_general`; the compiler must not see another program than that of `@`."""
    layer = Dense(SMALL, 4, dtype)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}

    def called(params, x):
        return layer.apply({"params": params}, x)

    def written(params, x):
        y = x.astype(dtype) @ params["kernel"].astype(dtype)
        return (y + params["bias"]).astype(dtype)

    written.__name__ = called.__name__
    assert jax.jit(called).lower(params, x).as_text() == jax.jit(written).lower(params, x).as_text()
    np.testing.assert_array_equal(called(params, x), written(params, x))
