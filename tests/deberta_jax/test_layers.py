"""Dense layers and LayerNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.layers import Dense, normalize

from ..support.golden_cases import assert_close
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


EPSILON = 1e-7


def rows_to_normalize(dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x, whose rows have means of several standard deviations, a scale and a bias."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (3, 5, 24)) + 8 * jax.random.normal(keys[1], (3, 5, 1))
    return x.astype(dtype), 1 + jax.random.normal(keys[2], (24,)), jax.random.normal(keys[3], (24,))


def flax_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    layer = nn.LayerNorm(EPSILON, use_fast_variance=False, dtype=jnp.float32)
    normalized = layer.apply({"params": {"scale": scale, "bias": bias}}, x)
    assert isinstance(normalized, jax.Array)
    return normalized


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return normalize(EPSILON, jnp.float32, x, scale, bias)


def test_layer_norm_equals_flax_with_first_and_second_derivatives() -> None:
    """SiFT differentiates a gradient; both modes are used in either order."""
    arguments = rows_to_normalize()
    tangents = tuple(jax.random.normal(jax.random.key(index), x.shape) for index, x in enumerate(arguments))
    cotangent = jax.random.normal(jax.random.key(9), arguments[0].shape)

    def derivatives(function):
        def gradient(*arguments):
            return jax.vjp(function, *arguments)[1](cotangent)

        def squared_gradient(*arguments):
            return sum(jnp.square(part).sum() for part in gradient(*arguments))

        return {
            "value": function(*arguments),
            "gradient": gradient(*arguments),
            "forward": jax.jvp(function, arguments, tangents)[1],
            "forward over reverse": jax.jvp(gradient, arguments, tangents)[1],
            "reverse over reverse": jax.grad(squared_gradient, argnums=(0, 1, 2))(*arguments),
        }

    got, want = (jax.jit(lambda f=f: derivatives(f))() for f in (layer_norm, flax_layer_norm))
    for name, expected in want.items():
        for actual, leaf in zip(jax.tree.leaves(got[name]), jax.tree.leaves(expected), strict=True):
            assert_close(actual, leaf, 1e-5 if "reverse" in name else 1e-6, name)


def test_layer_norm_in_bfloat16_differs_from_float32_by_the_rounding_of_the_result() -> None:
    """The one-pass variance loses nothing that counts, although the means are several standard deviations."""
    x, scale, bias = rows_to_normalize(jnp.bfloat16)
    cotangent = jax.random.normal(jax.random.key(9), x.shape).astype(jnp.bfloat16)
    got, backward = jax.vjp(lambda *arguments: normalize(EPSILON, jnp.bfloat16, *arguments), x, scale, bias)
    want, backward_float32 = jax.vjp(flax_layer_norm, x.astype(jnp.float32), scale, bias)
    gradients, expected = backward(cotangent), backward_float32(cotangent.astype(jnp.float32))
    assert [got.dtype, *(part.dtype for part in gradients)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(gradients[0].astype(jnp.float32), expected[0], rtol=2**-8, atol=1e-4)
    for part, leaf in zip(gradients[1:], expected[1:], strict=True):
        assert_close(part, leaf, 1e-4)


@pytest.mark.parametrize("ratio", [1, 10, 100])
def test_the_one_pass_variance_keeps_the_digits_of_bfloat16(ratio: int) -> None:
    """Mean over standard deviation; the error grows with its square, and at 100 is still below half a spacing."""
    x = (jax.random.normal(jax.random.key(0), (64, 768)) + ratio).astype(jnp.bfloat16)
    got = normalize(EPSILON, jnp.float32, x, jnp.ones(768), jnp.zeros(768))
    exact = np.asarray(x, np.float64)
    want = (exact - exact.mean(axis=-1, keepdims=True)) / exact.std(axis=-1, keepdims=True)
    assert np.abs(got / want - 1)[np.abs(want) > 0.1].max() < 2**-9


def test_layer_norm_of_a_constant_row_is_its_bias() -> None:
    """Rounding must not make the one-pass variance negative."""
    _, scale, bias = rows_to_normalize()
    for dtype in (jnp.float32, jnp.bfloat16):
        row = jnp.full((1, 24), 3.3, dtype)
        np.testing.assert_allclose(normalize(EPSILON, jnp.float32, row, scale, bias)[0], bias, atol=2e-2)
