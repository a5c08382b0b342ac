"""The fused kernel against plain attention, in TPU interpret mode: uninitialized memory is NaN, stray reads raise."""

import contextlib
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec, SingleDeviceSharding

from deberta_jax import DebertaConfig
from deberta_jax.attention import disentangled_attention
from deberta_jax.kernels import fused_attention, unsupported
from deberta_jax.kernels.fused import rows_by_offset, tiling
from deberta_jax.kernels.tiles import Plan, dropout_salt, kept
from deberta_jax.positions import live_rows
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, compile_for_tpu, topology

from ...support.tpu_topologies import needs_libtpu, small_slice

CONFIG = DebertaConfig.named("deberta-v3-small")
STRICT = pltpu.InterpretParams(out_of_bounds_reads="raise", uninitialized_memory="nan")


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    with pltpu.force_tpu_interpret_mode(STRICT):
        yield


def example(length: int, *, size: int = 64, heads: int = 2, terms: str = "c2p|p2c", dtype=jnp.float32):
    """(query, key, value, pos_key, pos_query), what attention needs besides, and a cotangent.

    The first sequence is one segment, the second has three and padding at its end.
    """
    keys = jax.random.split(jax.random.key(length), 6)
    live, rows = live_rows(length, CONFIG)
    tokens, table = (2, length, heads, size), (live.stop - live.start, heads, size)
    query, key, value, cotangent = (jax.random.normal(key, tokens, dtype) for key in keys[:4])
    pos_key, pos_query = (jax.random.normal(key, table, dtype) for key in keys[4:])
    segments = np.ones((2, length), np.int32)
    segments[1, length // 4 :], segments[1, length // 2 :] = 7, 2
    segments[1, length - length // 5 :] = 0
    arrays = (query, key, value / 4, pos_key if "c2p" in terms else None, pos_query if "p2c" in terms else None)
    return arrays, {"rows": rows, "query_segments": segments, "key_segments": segments}, cotangent


def run(function, arrays, cotangent, **arguments):
    """Context, and the gradients of every array."""

    def context(arrays):
        query, key, value, pos_key, pos_query = arrays
        out = function(query, key, value, pos_key=pos_key, pos_query=pos_query, **arguments)
        return out[0] if isinstance(out, tuple) else out

    def both(arrays):
        out, backward = jax.vjp(context, arrays)
        return out, backward(cotangent)[0]

    return jax.jit(both)(arrays)


def fused(query, key, value, **arguments):
    return fused_attention(query, key, value, device_kind="cpu", **arguments)


def relative_error(got: jax.Array, want: jax.Array) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


TERMS = ("c2p|p2c", "c2p", "p2c", "")
LENGTHS = (1, 17, 128, 200, 512, 700, 2048)
# What runs everywhere, then what .ci/run adds: every length that is padded, split or filled in another way.
QUICK = {(1, "c2p|p2c", jnp.bfloat16), (17, "c2p|p2c", jnp.float32), (17, "", jnp.bfloat16)}
SLOW = {(128, "c2p|p2c", jnp.bfloat16), (700, "c2p|p2c", jnp.bfloat16)}


def marks(case: tuple) -> list:
    return [] if case in QUICK else [pytest.mark.slow] if case in SLOW else [pytest.mark.long]


CASES = [
    pytest.param(length, 64, terms, dtype, marks=marks((length, terms, dtype)))
    for length, terms, dtype in itertools.product(LENGTHS, TERMS, (jnp.float32, jnp.bfloat16))
]
# Other head sizes.
CASES += [
    (17, 32, "c2p", jnp.float32),
    (17, 128, "p2c", jnp.float32),
    (17, 40, "c2p|p2c", jnp.float32),
    pytest.param(700, 128, "c2p|p2c", jnp.float32, marks=pytest.mark.long),
    pytest.param(200, 32, "c2p|p2c", jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param(512, 128, "c2p|p2c", jnp.bfloat16, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("length", "size", "terms", "dtype"), CASES)
def test_forward_and_gradients_equal_plain_attention(length: int, size: int, terms: str, dtype) -> None:
    arrays, arguments, cotangent = example(length, size=size, heads=3 if size == 40 else 2, terms=terms, dtype=dtype)
    with interpreted():
        got, gradients = run(fused, arrays, cotangent, **arguments)
    wide, wide_cotangent = jax.tree.map(lambda x: x.astype(jnp.float32), (arrays, cotangent))
    want, expected = run(disentangled_attention, wide, wide_cotangent, **arguments)
    assert got.dtype == dtype
    narrow = dtype == jnp.bfloat16
    # bfloat16: and what storing the plain result would cost, half a unit in the last place.
    np.testing.assert_allclose(
        got.astype(jnp.float32), want, atol=2e-3 if narrow else 1e-5, rtol=2**-9 if narrow else 0
    )
    np.testing.assert_array_equal(np.asarray(got)[arguments["query_segments"] == 0], 0)
    for gradient, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert gradient.dtype == dtype
        if jnp.abs(wanted).max() > 1e-6:  # a single token's weights are 1 whatever its scores
            assert relative_error(gradient, wanted) < (5e-3 if narrow else 1e-5)
        else:
            assert jnp.abs(gradient).max() < 1e-6


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("kind", CHIPS)
@pytest.mark.parametrize(
    ("length", "size", "terms", "dtype"),
    [
        (128, 64, "c2p|p2c", jnp.bfloat16),
        (512, 64, "c2p|p2c", jnp.bfloat16),
        (700, 128, "c2p", jnp.float32),
        (200, 32, "p2c", jnp.bfloat16),
        pytest.param(1024, 64, "c2p|p2c", jnp.float32, marks=pytest.mark.long),
        (2048, 64, "c2p|p2c", jnp.bfloat16),
        pytest.param(4096, 64, "c2p|p2c", jnp.float32, marks=pytest.mark.long),
    ],
)
def test_it_compiles_for_every_chip(kind: str, length: int, size: int, terms: str, dtype) -> None:
    """Forward and backward with dropout: what runs in interpret mode may still not lower."""
    _, devices = topology(small_slice(kind))
    if unsupported(length, size, dtype, devices[0].device_kind) is not None:
        pytest.skip("not for this chip")
    arrays, arguments, cotangent = example(length, size=size, heads=4, terms=terms, dtype=dtype)
    place = SingleDeviceSharding(devices[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (arrays, cotangent))

    def gradients(arrays, cotangent):
        query, key, value, pos_key, pos_query = arrays
        settings = {"dropout_rate": 0.1, "dropout_key": jax.random.key(0), "device_kind": devices[0].device_kind}
        attend = functools.partial(fused_attention, **arguments, **settings)
        context, backward = jax.vjp(
            lambda q, k, v, pk, pq: attend(q, k, v, pos_key=pk, pos_query=pq), query, key, value, pos_key, pos_query
        )
        return context, backward(cotangent)

    text = compile_for_tpu(jax.jit(gradients).trace(*shapes)).as_text()
    assert "disentangled_forward" in text
    assert "disentangled_backward" in text


def test_tiling_and_rows_by_offset() -> None:
    assert [tiling(length, jnp.float32, "cpu") for length in (1, 128, 200, 512, 513, 700, 2048, 4096)] == [
        (128, 1), (128, 1), (256, 1), (512, 1), (384, 2), (384, 2), (512, 4), (512, 8),
    ]  # fmt: skip
    assert tiling(2048, jnp.bfloat16, "TPU v4") == (256, 8)
    assert tiling(512, jnp.bfloat16, "TPU v4") == (512, 1)
    _, rows = live_rows(200, CONFIG)
    c2p, p2c = rows_by_offset(rows, 256)
    for query, key in ((0, 0), (199, 0), (0, 199), (150, 20)):
        wanted = rows[199 - (query - key)]
        assert c2p[256 - (query - key)] == wanted
        assert p2c[256 + (query - key)] == wanted


def keep_mask(plan: Plan, seed, row: int, head: int, length: int) -> np.ndarray:
    """bool [queries, keys], tile by tile as the kernels draw it."""
    salt = dropout_salt(seed, jnp.int32(row), jnp.int32(head))
    draw = jax.jit(lambda key, query: kept(plan, salt, key, query))
    chunks = range(0, plan.length, plan.chunk)
    columns = [[draw(key, query) for query in chunks] for key in range(0, plan.length, 128)]
    return np.block([[np.asarray(tile) for tile in row] for row in columns]).T[:length, :length]


def plan_of(length: int, rate: float, **fields) -> Plan:
    chunk, chunks = tiling(length, jnp.float32, "cpu")
    common = {"head_size": 64, "scale": 192**-0.5, "c2p": True, "p2c": True, "packed": False}
    machine = {"strided_roll": True, "pack_instruction": False}
    return Plan(chunk=chunk, chunks=chunks, dropout_rate=rate, **common | machine | fields)


@pytest.mark.parametrize("length", [17, pytest.param(700, marks=pytest.mark.slow)])
def test_dropout_is_one_mask_forward_and_backward(length: int) -> None:
    """Against plain attention whose probabilities are multiplied by the mask that the hash says."""
    arrays, arguments, cotangent = example(length)
    key, plan = jax.random.key(3), plan_of(length, 0.1)
    with interpreted():
        got, gradients = run(fused, arrays, cotangent, dropout_rate=0.1, dropout_key=key, **arguments)
    seed = jax.lax.bitcast_convert_type(jax.random.bits(key, (), jnp.uint32), jnp.int32)
    mask = np.stack([[keep_mask(plan, seed, row, head, length) for head in range(2)] for row in range(2)])
    assert 0.8 < mask.mean() < 0.98

    def dropped(query, key, value, **arguments):
        _, probabilities = disentangled_attention(query, key, value, **arguments)
        return jnp.einsum("bnts,bsnh->btnh", probabilities * mask / plan.kept_share, value)

    want, expected = run(dropped, arrays, cotangent, **arguments)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for gradient, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert relative_error(gradient, wanted) < 1e-5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_mask_is_at_its_rate_and_uncorrelated(rate: float) -> None:
    plan = plan_of(1024, rate)
    draws = [(seed, row, head) for seed in (1, 2) for row in (0, 1) for head in (0, 1)]
    masks = np.stack([keep_mask(plan, jnp.int32(seed), row, head, 1024) for seed, row, head in draws])
    share, count = plan.drop_below / 2**16, masks.size
    assert abs(share - rate) <= 2**-17
    assert abs(1 - masks.mean() - share) < 5 * (share * (1 - share) / count) ** 0.5
    for axis in range(3):  # every query, key and draw at the rate: no stripes
        shares = 1 - np.moveaxis(masks, axis, 0).reshape(masks.shape[axis], -1).mean(axis=1)
        assert np.abs(shares - share).max() < 6 * (share * (1 - share) * masks.shape[axis] / count) ** 0.5
    centerd = masks - masks.mean()
    bound = 6 * share * (1 - share)
    for query, key in ((0, 1), (1, 0), (1, 1), (0, 64), (0, 128), (64, 0), (512, 0), (0, 512)):
        pairs = centerd[:, query:, key:] * centerd[:, : 1024 - query, : 1024 - key]
        assert abs(pairs.mean()) < bound / pairs.size**0.5
    for one in range(len(draws)):
        for other in range(one):
            assert abs((centerd[one] * centerd[other]).mean()) < bound / 1024


@pytest.mark.slow
def test_chunks_that_cannot_see_each_other_are_skipped() -> None:
    """NaN in keys and values of a chunk of padding would spread through 0 * NaN, were the chunk multiplied."""
    arrays, arguments, _ = example(700)
    chunk, _ = tiling(700, jnp.float32, "cpu")
    segments = np.ones((2, 700), np.int32)
    segments[:, chunk:] = 0
    query, key, value, pos_key, pos_query = arrays
    key, value = key.at[:, chunk:].set(jnp.nan), value.at[:, chunk:].set(jnp.nan)
    arguments |= {"query_segments": segments, "key_segments": segments}
    with interpreted():
        got = jax.jit(lambda *x: fused(*x, pos_key=pos_key, pos_query=pos_query, **arguments))(query, key, value)
    assert np.isfinite(got).all()
    assert np.abs(got[:, :chunk]).max() > 0.1


def test_queries_at_positions_of_their_own() -> None:
    arrays, arguments, _ = example(17)
    query, key, value, pos_key, pos_query = arrays
    positions = jnp.array([[2, 9, 16, 0, 0], [1, 5, 12, 0, 0]])
    arguments |= {
        "query_segments": jnp.take_along_axis(jnp.asarray(arguments["query_segments"]), positions, axis=1),
        "query_positions": positions,
    }
    chosen = jnp.take_along_axis(query, positions[..., None, None], axis=1)
    arrays, cotangent = (chosen, key, value, pos_key, pos_query), jax.random.normal(jax.random.key(1), chosen.shape)
    cotangent = cotangent.at[:, 3:].set(0)  # the unused slots
    with interpreted():
        got, gradients = run(disentangled_attention, arrays, cotangent, implementation="pallas", **arguments)
    want, expected = run(disentangled_attention, arrays, cotangent, implementation="xla", **arguments)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for gradient, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert relative_error(gradient, wanted) < 1e-5


def test_on_a_mesh_equals_one_device_and_drops_the_same() -> None:
    arrays, arguments, cotangent = example(17, heads=4)
    common = arguments | {"dropout_rate": 0.1, "dropout_key": jax.random.key(0), "implementation": "pallas"}
    with interpreted():
        want, expected = run(disentangled_attention, arrays, cotangent, **common)
        with jax.set_mesh(make_mesh(data=2, tensor=2, devices=jax.devices()[:4])):
            got, gradients = run(disentangled_attention, arrays, cotangent, **common)
    np.testing.assert_allclose(got, want, atol=1e-6)
    for gradient, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert relative_error(gradient, wanted) < 1e-6


def test_the_kernel_is_taken_where_it_is_asked_for() -> None:
    arrays, arguments, _ = example(17)
    mesh = AbstractMesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        abstract_device=AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu"),
    )

    def program(implementation: str) -> str:
        def context(query, key, value, pos_key, pos_query):
            return disentangled_attention(
                query, key, value, pos_key=pos_key, pos_query=pos_query, implementation=implementation, **arguments
            )[0]

        return str(jax.make_jaxpr(context)(*arrays))

    with jax.sharding.use_abstract_mesh(mesh):
        assert "disentangled_forward" in program("pallas")
        assert "disentangled_forward" in program("auto")
        assert "disentangled_forward" not in program("xla")
    assert "disentangled_forward" not in program("auto")  # this machine has no TPU


def test_a_mesh_without_our_axes_is_refused() -> None:
    arrays, arguments, _ = example(17)
    query, key, value, pos_key, pos_query = arrays
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"the axes batch, and .* over data, zero, fsdp, tensor"):
        disentangled_attention(
            query, key, value, pos_key=pos_key, pos_query=pos_query, implementation="pallas", **arguments
        )


def test_inside_a_shard_map_of_the_caller() -> None:
    arrays, arguments, _ = example(17)
    query, key, value, pos_key, pos_query = arrays
    rows = arguments.pop("rows")
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def context(implementation: str):
        def local(arrays, segments):
            query, key, value = arrays
            terms = {"pos_key": pos_key, "pos_query": pos_query, "rows": rows}
            return disentangled_attention(query, key, value, implementation=implementation, **terms, **segments)[0]

        batch = PartitionSpec("batch")
        return jax.jit(jax.shard_map(local, in_specs=(batch, batch), out_specs=batch, check_vma=False))

    with interpreted(), jax.set_mesh(mesh):
        got = context("pallas")((query, key, value), arguments)
        want = context("xla")((query, key, value), arguments)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_what_the_kernel_does_not_take_is_named() -> None:
    arrays, arguments, _ = example(5, size=160)
    query, key, value, pos_key, pos_query = arrays
    with pytest.raises(ValueError, match="head size is 160 and the kernel takes at most 128; use 'xla' or 'auto'"):
        disentangled_attention(
            query, key, value, pos_key=pos_key, pos_query=pos_query, implementation="pallas", **arguments
        )
    assert unsupported(512, 64, jnp.float16, "TPU v5p") == (
        "the dtype is float16 and the kernel takes float32 or bfloat16"
    )
    assert unsupported(2049, 64, jnp.bfloat16, "TPU v4") == (
        "there are 2049 tokens and on TPU v4 the kernel takes at most 2048 of this dtype"
    )
    assert unsupported(1025, 64, jnp.float32, "TPU v4") is not None
    assert unsupported(4096, 64, jnp.float32, "TPU v5p") is None
