"""The GPU kernels, in interpret mode, against attention in plain XLA, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.gpu_kernels import gpu_attention, unsupported
from deberta_jax.xla_attention import BlockSizes, attention_context

from ...support.attention_cases import AttentionCase, attention_case, context_and_gradients, relative_error
from ...support.gpu_interpreter import interpreted_gpu_kernels

H100 = "NVIDIA H100 80GB HBM3"
# bfloat16 rounds scores, their gradients and probabilities; attention in XLA with bfloat16 differs by up to 4e-3.
TOLERANCE = 6e-3


def check(case: AttentionCase) -> None:
    """Asserts that context and gradients are those of plain attention in float32."""
    with interpreted_gpu_kernels() as interpret:
        found, gradients = context_and_gradients(functools.partial(gpu_attention, interpret=interpret), case)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, case)
    batch, length, heads, _ = case.query.shape
    plain = functools.partial(attention_context, sizes=BlockSizes(heads, batch, length))
    expected, expected_gradients = context_and_gradients(plain, wide)
    assert relative_error(found, expected) < TOLERANCE
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == jnp.bfloat16
        assert relative_error(gradient, expected_gradients[name]) < TOLERANCE, name
    real = np.asarray(case.inputs.query_segments) != 0
    np.testing.assert_array_equal(np.asarray(found, np.float32)[~real], 0)


@pytest.mark.parametrize("terms", ["c2p|p2c", "c2p", "p2c", ""])
def test_context_and_gradients_equal_plain_attention(terms: str) -> None:
    check(attention_case(70, size=64, heads=1, terms=terms, dtype=jnp.bfloat16))


@pytest.mark.parametrize(("length", "size"), [(64, 64), (130, 32), (33, 128)])
def test_lengths_and_head_sizes_are_padded(length: int, size: int) -> None:
    check(attention_case(length, size=size, heads=2, dtype=jnp.bfloat16))


def test_dropout_has_the_mask_of_plain_attention() -> None:
    case = attention_case(100, heads=2, dtype=jnp.bfloat16)
    inputs = case.inputs.replace(dropout_rate=0.2, dropout_key=jax.random.key(3))
    check(case._replace(inputs=inputs))
    with interpreted_gpu_kernels() as interpret:  # one sequence and head of the whole
        part = inputs.replace(
            query_segments=inputs.query_segments[1:],
            key_segments=inputs.key_segments[1:],
            pos_key=inputs.pos_key[:, 1:],
            pos_query=inputs.pos_query[:, 1:],
        )
        arrays = (x[1:, :, 1:] for x in case[:3])
        found = gpu_attention(*arrays, part, first_sequence=1, first_head=1, sequences=2, interpret=interpret)
    whole = attention_context(*case[:3], inputs, sizes=BlockSizes(2, 2, 100))
    assert relative_error(found, whole[1:, :, 1:]) < TOLERANCE


def test_heads_are_computed_in_groups_where_the_bias_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    case = attention_case(70, heads=4, dtype=jnp.bfloat16)
    inputs = case.inputs.replace(dropout_rate=0.2, dropout_key=jax.random.key(3))
    batch, padded = case.query.shape[0], 128
    monkeypatch.setattr("deberta_jax.gpu_kernels.attention._LARGEST_BIAS", 3 * batch * padded * padded)
    check(case._replace(inputs=inputs))


def test_queries_may_be_at_any_positions() -> None:
    case = attention_case(80, heads=1, dtype=jnp.bfloat16)
    positions = jnp.array([[2, 9, 16, 70, 79], [1, 5, 12, 40, 60]])
    segments = jnp.take_along_axis(jnp.asarray(case.inputs.query_segments), positions, axis=1)
    query, cotangent = (
        jnp.take_along_axis(x, positions[..., None, None], axis=1) for x in (case.query, case.cotangent)
    )
    inputs = case.inputs.replace(query_segments=segments, query_positions=positions)
    check(case._replace(query=query, cotangent=cotangent, inputs=inputs))


def test_vmap_equals_a_loop() -> None:
    """As for gradients of each example."""
    case = attention_case(64, heads=1, dtype=jnp.bfloat16)
    inputs = case.inputs.replace(dropout_rate=0.1, dropout_key=jax.random.key(0))
    queries = jnp.stack([case.query, case.query * 2])
    with interpreted_gpu_kernels() as interpret:

        def total(query: jax.Array) -> jax.Array:
            context = gpu_attention(query, case.key, case.value, inputs, interpret=interpret)
            return (context.astype(jnp.float32) ** 2).sum()

        found = jax.jit(jax.vmap(jax.grad(total)))(queries)
        expected = jnp.stack([jax.jit(jax.grad(total))(query) for query in queries])
    np.testing.assert_array_equal(found, expected)


def test_what_the_kernels_do_not_support_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "the GPU kernel needs 0.11 or newer" in str(unsupported(64, jnp.bfloat16, H100))
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    assert unsupported(64, jnp.bfloat16, H100) is None
    assert unsupported(64, jnp.bfloat16, "NVIDIA GH200 480GB") is None
    assert "A100-SXM4-80GB and the GPU kernel is made for Hopper" in str(
        unsupported(64, jnp.bfloat16, "NVIDIA A100-SXM4-80GB")
    )
    assert "takes bfloat16" in str(unsupported(64, jnp.float32, H100))
    assert "head size is 160" in str(unsupported(160, jnp.bfloat16, H100))
