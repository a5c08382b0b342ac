"""Attention in plain XLA, in blocks of any size, against its definition; and what it keeps for the backward pass."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.attention import AttentionInputs
from deberta_jax.random import dropout
from deberta_jax.xla_attention import BlockSizes, attention_context, attention_probabilities, block_sizes

from ..support.attention_cases import AttentionCase, assert_gradients_near, attention_case, context_and_gradients

LENGTH = 13
DROPOUT = {"dropout_rate": 0.3, "dropout_key": jax.random.key(5)}


def definition(
    query: jax.Array, key: jax.Array, value: jax.Array, inputs: AttentionInputs
) -> tuple[jax.Array, jax.Array]:
    """Context and probabilities from the formula: a vector of the relative table for each pair of query and key."""
    positions = jnp.arange(key.shape[1])
    queries = positions if inputs.query_positions is None else jnp.asarray(inputs.query_positions)
    rows = inputs.live_rows.rows_of(queries[..., None] - positions)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key)
    table_axes = "tsnh" if rows.ndim == 2 else "btsnh"
    if inputs.pos_key is not None:
        scores += jnp.einsum(f"btnh,{table_axes}->bnts", query, inputs.pos_key[rows])
    if inputs.pos_query is not None:
        scores += jnp.einsum(f"bsnh,{table_axes}->bnts", key, inputs.pos_query[rows])
    scores /= (query.shape[-1] * (1 + inputs.position_terms)) ** 0.5
    real = (inputs.query_segments != 0)[:, None, :, None]
    same = inputs.query_segments[:, None, :, None] == inputs.key_segments[:, None, None, :]
    probabilities = jnp.where(real, jax.nn.softmax(jnp.where(same & real, scores, -1e30), axis=-1), 0)
    dropped = probabilities
    if inputs.dropout_key is not None:  # the mask is that of [N, B, T, S]
        dropped = dropout(probabilities.swapaxes(0, 1), rate=inputs.dropout_rate, key=inputs.dropout_key).swapaxes(0, 1)
    return jnp.einsum("bnts,bsnh->btnh", dropped, value), probabilities


def case_with(**changes) -> AttentionCase:
    case = attention_case(LENGTH, size=8, heads=3)
    return case._replace(inputs=case.inputs.replace(**changes))


@pytest.mark.parametrize("changes", [{}, DROPOUT, {"pos_key": None}, {"pos_query": None}], ids=str)
@pytest.mark.parametrize("sizes", [(3, 2, 13), (1, 2, 13), (3, 1, 13), (2, 1, 13), (1, 1, 5), (3, 2, 4)])
def test_blocks_of_any_size_equal_the_definition(sizes: tuple[int, int, int], changes: dict) -> None:
    case = case_with(**changes)
    attend = functools.partial(attention_context, sizes=BlockSizes(*sizes))
    context, gradients = context_and_gradients(attend, case)
    expected, expected_gradients = context_and_gradients(lambda *arguments: definition(*arguments)[0], case)
    np.testing.assert_allclose(context, expected, atol=1e-6)
    assert_gradients_near(gradients, expected_gradients, 1e-6)


def test_rows_of_long_sequences_are_computed_and_no_constant_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_with()
    attend = functools.partial(attention_context, sizes=BlockSizes(3, 2, LENGTH))
    expected, expected_gradients = context_and_gradients(attend, case)
    monkeypatch.setattr("deberta_jax.position_scores._LONGEST_CONSTANT", LENGTH - 1)
    jax.clear_caches()
    context, gradients = context_and_gradients(attend, case)
    np.testing.assert_array_equal(context, expected)
    assert_gradients_near(gradients, expected_gradients, 1e-6)
    compiled = jax.jit(attend).lower(*case[:4]).compile().as_text()
    constants = [
        math.prod(map(int, shape.split(","))) for shape in re.findall(r"s32\[([\d,]+)\]\S* constant", compiled)
    ]
    assert 2 * LENGTH - 1 in constants  # the row of each distance
    assert max(constants) < LENGTH * LENGTH


@pytest.mark.parametrize("sizes", [(3, 2, 4), (1, 1, 4), (1, 1, 3)])
def test_queries_at_any_positions_equal_the_definition(sizes: tuple[int, int, int]) -> None:
    positions = jnp.array([[2, 9, 12, 2], [1, 5, 8, 0]])
    case = case_with(query_positions=positions)
    segments = jnp.take_along_axis(jnp.asarray(case.inputs.query_segments), positions, axis=1)
    query, cotangent = (
        jnp.take_along_axis(x, positions[..., None, None], axis=1) for x in (case.query, case.cotangent)
    )
    inputs = case.inputs.replace(query_segments=segments)
    case = case._replace(query=query, cotangent=cotangent, inputs=inputs)
    attend = functools.partial(attention_context, sizes=BlockSizes(*sizes))
    context, gradients = context_and_gradients(attend, case)
    expected, expected_gradients = context_and_gradients(lambda *arguments: definition(*arguments)[0], case)
    np.testing.assert_allclose(context, expected, atol=1e-6)
    assert_gradients_near(gradients, expected_gradients, 1e-6)


def test_probabilities_equal_the_definition() -> None:
    case = case_with()
    probabilities = attention_probabilities(case.query, case.key, case.inputs)
    np.testing.assert_allclose(probabilities, definition(*case[:4])[1], atol=1e-6)


def test_part_of_the_batch_has_the_dropout_mask_that_it_has_in_the_whole() -> None:
    case = case_with(**DROPOUT)
    whole = attention_context(*case[:4], sizes=BlockSizes(3, 2, LENGTH))
    inputs = case.inputs.replace(
        query_segments=case.inputs.query_segments[1:],
        key_segments=case.inputs.key_segments[1:],
        pos_key=case.inputs.pos_key[:, 2:],
        pos_query=case.inputs.pos_query[:, 2:],
    )
    query, key, value = (x[1:, :, 2:] for x in case[:3])
    sizes = BlockSizes(1, 1, 6)
    part = attention_context(query, key, value, inputs, sizes=sizes, first_sequence=1, first_head=2, sequences=2)
    np.testing.assert_allclose(part, whole[1:, :, 2:], atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 2, 13), (1, 1, 5)])
def test_no_scores_are_kept_for_the_backward_pass(sizes: tuple[int, int, int]) -> None:
    case = case_with(**DROPOUT)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, pos_key: jax.Array, pos_query: jax.Array):
        inputs = case.inputs.replace(pos_key=pos_key, pos_query=pos_query)
        return attention_context(query, key, value, inputs, sizes=BlockSizes(*sizes))

    tables = case.inputs.pos_key, case.inputs.pos_query
    _, pull_back = jax.vjp(attend, *case[:3], *tables)
    kept = [x.size for x in jax.tree.leaves(pull_back)]
    heads, batch, padded = 3, 2, 15  # 13 queries in blocks of 5
    assert sum(kept) > case.query.size  # otherwise nothing was looked at
    assert max(kept) <= max(batch * padded * heads * 8, *(table.size for table in tables))
    assert all(size < heads * batch * LENGTH**2 for size in kept)


def test_forward_mode_and_second_derivatives_work() -> None:
    case = case_with()

    def loss(scale: jax.Array, sizes: BlockSizes) -> jax.Array:
        return (attention_context(scale * case.query, case.key, case.value, case.inputs, sizes=sizes) ** 2).sum()

    second = [float(jax.hessian(loss)(jnp.float32(1.5), BlockSizes(*sizes))) for sizes in ((3, 2, 13), (1, 1, 5))]
    assert second[0] == pytest.approx(second[1], rel=1e-4)
    step = 0.01
    slopes = [float(jax.grad(loss)(jnp.float32(1.5 + sign * step), BlockSizes(3, 2, 13))) for sign in (1, -1)]
    assert second[0] == pytest.approx((slopes[0] - slopes[1]) / (2 * step), rel=1e-2)


def test_blocks_bound_the_scores() -> None:
    assert block_sizes(12, 8, 128, 128, "cpu") == (1, 8, 128)
    assert block_sizes(12, 2, 512, 512, "cpu") == (1, 1, 512)
    assert block_sizes(12, 64, 32, 32, "cpu") == (12, 16, 32)
    assert block_sizes(12, 1, 128, 128, "cpu") == (12, 1, 128)
    for device_kind, limit in (("cpu", 2**19), ("NVIDIA H100 80GB HBM3", 2**26)):
        for heads, sequences, length in ((12, 32, 512), (12, 4, 4096), (16, 1, 24000), (7, 13, 997), (1, 1, 1)):
            sizes = block_sizes(heads, sequences, length, length, device_kind)
            assert sizes.heads * sizes.sequences * sizes.queries * length <= max(limit, 128 * length)
            assert all(size >= 1 for size in sizes)
    assert block_sizes(12, 4, 4096, 4096, "TPU v5 lite").queries == 4096
