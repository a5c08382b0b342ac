"""The kernels that keep their probabilities against those that compute them again, in TPU interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.attention import disentangled_attention
from deberta_jax.kernels import fused_attention, kept_bytes
from deberta_jax.kernels.plan import KernelPlan
from deberta_jax.sharding import make_mesh

from ...support.attention_cases import (
    CONFIG,
    AttentionCase,
    assert_gradients_near,
    attention_case,
    context_and_gradients,
    interpreted_kernels,
)

recomputing = functools.partial(fused_attention, device_kind="cpu")
keeping = functools.partial(fused_attention, device_kind="cpu", keep_probabilities=True)


def case_of(length: int, size: int, terms: str, dtype, rate: float) -> AttentionCase:
    """With 3 heads where the head size is padded, so that the heads are padded, too."""
    case = attention_case(length, size=size, heads=3 if size == 40 else 2, terms=terms, dtype=dtype)
    if rate == 0:
        return case
    return case._replace(inputs=case.inputs.replace(dropout_rate=rate, dropout_key=jax.random.key(3)))


# (length, head size, terms, dtype, dropout rate). Each case has segments and padding, see `attention_case`.
QUICK = [(17, 40, "c2p|p2c", jnp.float32, 0.1)]
SLOW = [
    (200, 64, "c2p|p2c", jnp.bfloat16, 0.1),
    (17, 128, "p2c", jnp.bfloat16, 0.0),
]
LONG = [
    (512, 64, "c2p|p2c", jnp.bfloat16, 0.1),
    (512, 64, "c2p|p2c", jnp.bfloat16, 0.0),
    (300, 64, "c2p", jnp.bfloat16, 0.1),
    (200, 32, "", jnp.float32, 0.1),
    (200, 128, "c2p|p2c", jnp.float32, 0.1),
]


@pytest.mark.parametrize(
    ("length", "size", "terms", "dtype", "rate"),
    [
        *QUICK,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
        *(pytest.param(*case, marks=pytest.mark.long) for case in LONG),
    ],
)
def test_kept_probabilities_give_the_same_context_and_gradients(length, size, terms, dtype, rate) -> None:
    case = case_of(length, size, terms, dtype, rate)
    with interpreted_kernels():
        context, gradients = context_and_gradients(keeping, case)
        expected, expected_gradients = context_and_gradients(recomputing, case)
    np.testing.assert_array_equal(context, expected)
    assert_gradients_near(gradients, expected_gradients, 5e-3 if dtype == jnp.bfloat16 else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "dtype", "tolerance"), [(17, jnp.float32, 1e-5), (200, jnp.bfloat16, 5e-3)])
def test_gradients_of_kept_probabilities_equal_plain_attention(length: int, dtype, tolerance: float) -> None:
    case = attention_case(length, dtype=dtype)
    with interpreted_kernels():
        _, gradients = context_and_gradients(keeping, case)

    def plain(query, key, value, inputs):
        return disentangled_attention(query, key, value, inputs, implementation="xla").context

    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, case)
    assert_gradients_near(gradients, context_and_gradients(plain, wide)[1], tolerance)


@pytest.mark.slow
def test_mesh_equals_one_device_with_the_same_dropout() -> None:
    case = case_of(17, 128, "c2p|p2c", jnp.float32, 0.1)

    def attend(query, key, value, inputs):
        return disentangled_attention(
            query, key, value, inputs, implementation="pallas", keep_probabilities=True
        ).context

    with interpreted_kernels():
        expected, expected_gradients = context_and_gradients(attend, case)
        with jax.set_mesh(make_mesh(data=2, tensor=2, devices=jax.devices()[:4])):
            context, gradients = context_and_gradients(attend, case)
    np.testing.assert_allclose(context, expected, atol=1e-6)
    assert_gradients_near(gradients, expected_gradients, 1e-6)


@pytest.mark.parametrize(
    ("length", "size", "dtype"), [(17, 40, jnp.float32), (200, 64, jnp.bfloat16), (700, 64, jnp.bfloat16)]
)
def test_residuals_grow_by_the_kept_bytes(length: int, size: int, dtype) -> None:
    case = case_of(length, size, "c2p|p2c", dtype, 0.1)

    def residual_bytes(attend) -> int:
        def backward(query):
            return jax.vjp(lambda query: attend(query, case.key, case.value, case.inputs), query)[1]

        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(backward, case.query)))

    batch, _, heads, _ = case.query.shape
    config = CONFIG.replace(hidden_size=heads * size, num_attention_heads=heads)
    expected = kept_bytes(config, batch, length, dtype=dtype, device_kind="cpu")
    assert residual_bytes(keeping) - residual_bytes(recomputing) == expected
    assert (expected > 0) == (length <= 512)


def test_nothing_is_kept_without_gradients() -> None:
    case = case_of(17, 64, "c2p|p2c", jnp.bfloat16, 0.1)
    probabilities = "bf16[2,2,128,128]"

    def context(query):
        return keeping(query, case.key, case.value, case.inputs)

    assert probabilities not in str(jax.make_jaxpr(context)(case.query))
    with_gradients = jax.make_jaxpr(jax.grad(lambda query: context(query).astype(jnp.float32).sum()))(case.query)
    assert probabilities in str(with_gradients)


def test_kept_bytes_of_the_base_size() -> None:
    config = CONFIG.named("deberta-v3-base")
    bytes_ = kept_bytes(config, 32, 512, dtype=jnp.bfloat16, device_kind="TPU v5 lite")
    assert bytes_ == 32 * 12 * 512 * (512 * 2 + 4 * 4)
    assert kept_bytes(config, 32, 513, dtype=jnp.bfloat16, device_kind="TPU v5 lite") == 0
    assert kept_bytes(config, 32, 512, dtype=jnp.float16, device_kind="TPU v5 lite") == 0


def test_a_sequence_of_several_tiles_keeps_nothing() -> None:
    plan = functools.partial(
        KernelPlan.create, head_size=64, dtype=jnp.bfloat16, device_kind="TPU v5 lite", keep_probabilities=True
    )
    assert plan(length=512).keeps
    assert not plan(length=513).keeps
