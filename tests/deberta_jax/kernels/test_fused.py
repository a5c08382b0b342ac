"""The fused kernels against plain attention, in TPU interpret mode."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaConfig
from deberta_jax.attention import disentangled_attention
from deberta_jax.kernels import fused_attention, plan
from deberta_jax.kernels.fused import first_far, rows_by_offset
from deberta_jax.kernels.plan import KernelPlan
from deberta_jax.positions import live_rows
from deberta_jax.random import dropout_salt, keep_mask
from deberta_jax.sharding import make_mesh

from ...support.attention_cases import (
    CONFIG,
    AttentionCase,
    assert_gradients_near,
    attention_case,
    context_and_gradients,
    interpreted_kernels,
)

NEAR = CONFIG.replace(position_buckets=32, max_relative_positions=64)  # one row of the table for 64 and more


def fused(query, key, value, inputs):
    return fused_attention(query, key, value, inputs, device_kind="cpu")


def plain(query, key, value, inputs):
    return disentangled_attention(query, key, value, inputs, implementation="xla").context


def check_against_plain_attention(case: AttentionCase) -> None:
    """Compares context and gradients with plain attention in float32."""
    dtype = case.query.dtype
    with interpreted_kernels():
        context, gradients = context_and_gradients(fused, case)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, case)
    expected, expected_gradients = context_and_gradients(plain, wide)
    assert {context.dtype} | {gradient.dtype for gradient in gradients.values()} == {dtype}
    narrow = dtype == jnp.bfloat16
    # In bfloat16 storing the exact result costs half a unit in the last place, too.
    np.testing.assert_allclose(
        context.astype(jnp.float32), expected, atol=2e-3 if narrow else 1e-5, rtol=2**-9 if narrow else 0
    )
    np.testing.assert_array_equal(np.asarray(context)[case.inputs.query_segments == 0], 0)
    assert_gradients_near(gradients, expected_gradients, 5e-3 if narrow else 1e-5)


# (length, head size, terms, dtype). The quick cases cover both dtypes, one and two heads per step, and padding of the
# length, of the head size and of the heads. The slow ones cover tiles of several blocks. The long ones are all lengths
# that are padded or split in another way.
QUICK = [
    (1, 64, "c2p|p2c", jnp.bfloat16),
    (17, 40, "c2p|p2c", jnp.float32),
    (17, 128, "p2c", jnp.float32),
]
SLOW = [
    (17, 64, "", jnp.bfloat16),
    (17, 32, "c2p", jnp.float32),
    (200, 64, "c2p|p2c", jnp.bfloat16),
]
LONG = [
    case
    for case in [
        *itertools.product(
            (1, 17, 128, 200, 512, 700, 2048),
            (64,),
            ("c2p|p2c", "c2p", "p2c", ""),
            (jnp.float32, jnp.bfloat16),
        ),
        (200, 32, "c2p|p2c", jnp.bfloat16),
        (512, 128, "c2p|p2c", jnp.bfloat16),
        (700, 128, "c2p|p2c", jnp.float32),
    ]
    if case not in QUICK + SLOW
]


@pytest.mark.parametrize(
    ("length", "size", "terms", "dtype"),
    [
        *QUICK,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
        *(pytest.param(*case, marks=pytest.mark.long) for case in LONG),
    ],
)
def test_context_and_gradients_equal_plain_attention(length: int, size: int, terms: str, dtype) -> None:
    check_against_plain_attention(
        attention_case(length, size=size, heads=3 if size == 40 else 2, terms=terms, dtype=dtype)
    )


@pytest.mark.slow
def test_several_chunks_equal_plain_attention(monkeypatch) -> None:
    """Two chunks of 256 each, instead of one of 512: the same code as for more than 512 tokens, compiled sooner."""
    monkeypatch.setattr(plan, "_MAX_BLOCKS", 2)
    assert plan.tiling(300, jnp.bfloat16, "cpu") == (256, 2)
    check_against_plain_attention(attention_case(300, dtype=jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "terms", "dtype"),
    [
        (64, "c2p|p2c", jnp.bfloat16),
        (64, "c2p", jnp.float32),
        (64, "p2c", jnp.float32),
        (128, "c2p|p2c", jnp.float32),
    ],
)
def test_far_chunks_equal_plain_attention(size: int, terms: str, dtype, monkeypatch) -> None:
    """Three chunks of 128, of which the first and the last read one row of the table."""
    monkeypatch.setattr(plan, "_MAX_BLOCKS", 1)
    check_against_plain_attention(attention_case(300, size=size, terms=terms, dtype=dtype, config=NEAR))


@pytest.mark.parametrize(
    ("config", "length", "far"),
    [
        (CONFIG, 512, 1),  # one chunk
        (CONFIG, 1024, 2),  # distances of 1 to 1,023
        (CONFIG, 1500, 2),  # of three chunks the outer ones are 513 or more apart, and 512 is the last bucket
        (CONFIG, 2048, 2),
        (CONFIG.replace(position_buckets=-1, max_relative_positions=1000), 2048, 3),
    ],
)
def test_far_chunks_are_those_beyond_the_last_bucket(config: DebertaConfig, length: int, far: int) -> None:
    kernel_plan = KernelPlan.create(length=length, head_size=64, dtype=jnp.bfloat16, device_kind="TPU v5e")
    assert first_far(kernel_plan, rows_by_offset(live_rows(length, config), kernel_plan.length)) == far


@pytest.mark.slow
def test_chunks_that_cannot_see_each_other_are_skipped(monkeypatch) -> None:
    """If the chunk of padding were multiplied, the NaN in its keys and values would spread through 0 * NaN."""
    monkeypatch.setattr(plan, "_MAX_BLOCKS", 1)
    query, key, value, inputs, _ = attention_case(200, size=128, heads=1)
    chunk, chunks = plan.tiling(200, jnp.float32, "cpu")
    assert (chunk, chunks) == (128, 2)
    segments = np.ones((2, 200), np.int32)
    segments[:, chunk:] = 0
    key, value = key.at[:, chunk:].set(jnp.nan), value.at[:, chunk:].set(jnp.nan)
    inputs = inputs.replace(query_segments=segments, key_segments=segments)
    with interpreted_kernels():
        context = jax.jit(fused)(query, key, value, inputs)
    assert np.isfinite(context).all()
    assert np.abs(context[:, :chunk]).max() > 0.1


def dropout_mask(kernel_plan: KernelPlan, dropout_key: jax.Array, case: AttentionCase) -> np.ndarray:
    """bool [B, N, T, S]: what dropout keeps, drawn block by block like in the kernels."""
    batch, length, heads, _ = case.query.shape
    seed = jax.lax.bitcast_convert_type(jax.random.bits(dropout_key, (), jnp.uint32), jnp.int32)
    masks = []
    for sequence, head in itertools.product(range(batch), range(heads)):
        salt = dropout_salt(seed, jnp.int32(sequence), jnp.int32(head))
        columns = [
            keep_mask(
                salt,
                first_key,
                0,
                queries=kernel_plan.length,
                length=kernel_plan.length,
                drop_below=kernel_plan.drop_below,
            )
            for first_key in range(0, kernel_plan.length, 128)
        ]
        masks.append(np.concatenate(columns).T[:length, :length])
    return np.reshape(masks, (batch, heads, length, length))


DROPOUT_KEY = jax.random.key(3)


def case_with_dropout(length: int, *, size: int, heads: int, config: DebertaConfig = CONFIG) -> AttentionCase:
    case = attention_case(length, size=size, heads=heads, config=config)
    return case._replace(inputs=case.inputs.replace(dropout_rate=0.1, dropout_key=DROPOUT_KEY))


def on_kernel(query, key, value, inputs):
    return disentangled_attention(query, key, value, inputs, implementation="pallas").context


@pytest.fixture(scope="module")
def run_with_dropout():
    """A case of 17 tokens with dropout, and its context and gradients on one device."""
    case = case_with_dropout(17, size=128, heads=2)
    with interpreted_kernels():
        return case, *context_and_gradients(on_kernel, case)


def check_against_the_mask(case: AttentionCase, context: jax.Array, gradients: dict[str, jax.Array]) -> None:
    """Compares with plain attention whose probabilities are multiplied by the mask."""
    kernel_plan = KernelPlan.create(
        length=case.query.shape[1],
        head_size=case.query.shape[3],
        dtype=jnp.float32,
        device_kind="cpu",
        dropout_rate=0.1,
    )
    mask = dropout_mask(kernel_plan, DROPOUT_KEY, case)
    assert 0.8 < mask.mean() < 0.98

    def dropped(query, key, value, inputs):
        inputs = inputs.replace(dropout_key=None)
        probabilities = disentangled_attention(query, key, value, inputs, implementation="xla").probabilities
        return jnp.einsum("bnts,bsnh->btnh", probabilities * mask / kernel_plan.kept_share, value)

    expected, expected_gradients = context_and_gradients(dropped, case)
    np.testing.assert_allclose(context, expected, atol=1e-5)
    assert_gradients_near(gradients, expected_gradients, 1e-5)


def test_dropout_uses_one_mask_forward_and_backward(run_with_dropout) -> None:
    check_against_the_mask(*run_with_dropout)


@pytest.mark.slow
def test_dropout_over_several_chunks_uses_one_mask(monkeypatch) -> None:
    monkeypatch.setattr(plan, "_MAX_BLOCKS", 1)
    case = case_with_dropout(300, size=64, heads=4, config=NEAR)  # of three chunks, the outer ones are far
    with interpreted_kernels():
        check_against_the_mask(case, *context_and_gradients(on_kernel, case))


def test_mesh_equals_one_device_with_the_same_dropout(run_with_dropout) -> None:
    case, context, gradients = run_with_dropout
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    with interpreted_kernels(), jax.set_mesh(mesh):
        on_mesh, gradients_on_mesh = context_and_gradients(on_kernel, case)
    np.testing.assert_allclose(on_mesh, context, atol=1e-6)
    assert_gradients_near(gradients_on_mesh, gradients, 1e-6)


def test_expanded_tables_have_the_row_of_each_distance_at_its_offset() -> None:
    live = live_rows(200, CONFIG)
    c2p, p2c = rows_by_offset(live, 256)
    for query, key in ((0, 0), (199, 0), (0, 199), (150, 20)):
        expected = live.row_of_distance[199 - (query - key)]
        assert c2p[256 - (query - key)] == expected
        assert p2c[256 + (query - key)] == expected
