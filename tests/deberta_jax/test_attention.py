"""Plain attention against its definition, and the choice between plain attention and the kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from deberta_jax import position_scores
from deberta_jax.attention import AttentionInputs, disentangled_attention
from deberta_jax.position_scores import content_to_position, position_to_content, relative_shift
from deberta_jax.positions import LiveRows

from ..support.attention_cases import (
    AttentionCase,
    assert_gradients_near,
    attention_case,
    context_and_gradients,
    interpreted_kernels,
)


def test_relative_shift_equals_its_definition() -> None:
    x = np.arange(2 * 5 * 9).reshape(2, 5, 9)
    expected = np.stack([np.stack([x[b, i, 4 - i : 9 - i] for i in range(5)]) for b in range(2)])
    np.testing.assert_array_equal(relative_shift(jnp.asarray(x)), expected)
    few = np.stack([np.stack([x[b, i, 4 - i : 7 - i] for i in range(5)]) for b in range(2)])
    np.testing.assert_array_equal(relative_shift(jnp.asarray(x), 3), few)


def test_gather_and_shift_of_relative_products_agree() -> None:
    """CPU and GPU gather, a TPU shifts."""
    keys = jax.random.split(jax.random.key(0), 2)
    row_of_distance = np.array([3, 3, 3, 2, 1, 0, 0, 0, 0])  # distances 4 .. -4 of five tokens
    live = LiveRows(0, 4, row_of_distance)
    x, table = jax.random.normal(keys[0], (2, 3, 5, 4)), jax.random.normal(keys[1], (2, 4, 4))
    gathered = content_to_position(x, table, live)
    shifted = relative_shift(position_scores._per_row(x, table[:, row_of_distance]))
    np.testing.assert_allclose(gathered, shifted, atol=1e-6)
    gathered = position_to_content(x, table, live)
    shifted = relative_shift(position_scores._per_row(x, table[:, row_of_distance[::-1]])).swapaxes(-1, -2)
    np.testing.assert_allclose(gathered, shifted, atol=1e-6)


def test_selected_queries_equal_rows_of_the_full_attention() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    query, key, value = (jax.random.normal(key, (2, 11, 3, 8)) for key in keys[:3])
    pos_key, pos_query = (jax.random.normal(key, (21, 3, 8)) for key in keys[3:])
    segments = jnp.array([[1] * 6 + [2] * 5, [1] * 9 + [0] * 2])
    inputs = AttentionInputs(
        query_segments=segments,
        key_segments=segments,
        pos_key=pos_key,
        pos_query=pos_query,
        live_rows=LiveRows(0, 21, np.arange(21)[::-1]),
    )
    attend = jax.jit(disentangled_attention)
    full = attend(query, key, value, inputs).context
    positions = jnp.array([[0, 5, 6, 10], [3, 3, 8, 10]])
    selected = inputs.replace(
        query_segments=jnp.take_along_axis(segments, positions, axis=1), query_positions=positions
    )
    context = attend(jnp.take_along_axis(query, positions[..., None, None], axis=1), key, value, selected).context
    np.testing.assert_allclose(context, jnp.take_along_axis(full, positions[..., None, None], axis=1), atol=1e-5)
    np.testing.assert_array_equal(full[1, 9:], 0)  # padding queries get a zero context


# ---------------------------------------------------------------- the kernels behind `disentangled_attention`


def with_implementation(implementation: str) -> Callable[..., jax.Array]:
    def attend(query, key, value, inputs):
        return disentangled_attention(query, key, value, inputs, implementation=implementation).context

    return attend


def test_kernels_take_queries_at_any_position() -> None:
    case = attention_case(17, size=128, heads=1, terms="c2p")
    positions = jnp.array([[2, 9, 16, 0, 0], [1, 5, 12, 0, 0]])
    inputs = case.inputs.replace(
        query_segments=jnp.take_along_axis(jnp.asarray(case.inputs.query_segments), positions, axis=1),
        query_positions=positions,
    )
    query = jnp.take_along_axis(case.query, positions[..., None, None], axis=1)
    cotangent = jax.random.normal(jax.random.key(1), query.shape).at[:, 3:].set(0)  # the last two are unused slots
    case = AttentionCase(query, case.key, case.value, inputs, cotangent)
    with interpreted_kernels():
        context, gradients = context_and_gradients(with_implementation("pallas"), case)
    expected, expected_gradients = context_and_gradients(with_implementation("xla"), case)
    np.testing.assert_allclose(context, expected, atol=1e-5)
    assert_gradients_near(gradients, expected_gradients, 1e-5)


def test_kernels_run_inside_a_shard_map_of_the_caller() -> None:
    query, key, value, inputs, _ = attention_case(17, size=128, heads=1, terms="")
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    batch = PartitionSpec("batch")
    specs = inputs.replace(query_segments=batch, key_segments=batch)

    def context(implementation: str) -> jax.Array:
        attend = jax.shard_map(
            with_implementation(implementation),
            in_specs=(batch, batch, batch, specs),
            out_specs=batch,
            check_vma=False,
        )
        return jax.jit(attend)(query, key, value, inputs)

    with interpreted_kernels(), jax.set_mesh(mesh):
        np.testing.assert_allclose(context("pallas"), context("xla"), atol=1e-5)


def test_auto_uses_the_kernels_on_a_tpu_only() -> None:
    query, key, value, inputs, _ = attention_case(17)
    mesh = AbstractMesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        abstract_device=AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu"),
    )

    def program(implementation: str) -> str:
        return str(jax.make_jaxpr(with_implementation(implementation))(query, key, value, inputs))

    with jax.sharding.use_abstract_mesh(mesh):
        assert "disentangled_forward" in program("pallas")
        assert "disentangled_forward" in program("auto")
        assert "disentangled_forward" not in program("xla")
    assert "disentangled_forward" not in program("auto")  # this machine has no TPU


def gpu_mesh(card: str) -> AbstractMesh:
    device = AbstractDevice(device_kind=card, num_cores=None, platform="cuda")
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")
@pytest.mark.parametrize(
    ("card", "dtype", "kernels"),
    [
        ("NVIDIA H200", jnp.bfloat16, True),
        ("NVIDIA H200", jnp.float32, False),
        ("NVIDIA A100-SXM4-80GB", jnp.bfloat16, False),
    ],
)
def test_auto_uses_the_kernels_on_a_gpu_that_they_support(card: str, dtype: Any, kernels: bool) -> None:
    query, key, value, inputs, _ = attention_case(17, dtype=dtype)
    with jax.sharding.use_abstract_mesh(gpu_mesh(card)):
        program = str(jax.make_jaxpr(with_implementation("auto"))(query, key, value, inputs))
    assert ("wgmma" in program) == kernels


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")
@pytest.mark.parametrize("devices", [1, 8])
def test_auto_leaves_several_gpus_without_a_mesh_to_xla(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA would give each of them the whole batch of a kernel."""
    query, key, value, inputs, _ = attention_case(17, dtype=jnp.bfloat16)
    monkeypatch.setattr("deberta_jax.attention.current_device_kind", lambda: "NVIDIA H200")
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    for implementation, kernels in (("auto", devices == 1), ("pallas", True)):
        program = str(jax.make_jaxpr(with_implementation(implementation))(query, key, value, inputs))
        assert ("wgmma" in program) == kernels


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")
@pytest.mark.parametrize("sizes", ["batch, 17, 2, 64", "2, length, 2, 64"])
def test_auto_exports_symbolic_sizes_without_kernels_on_a_gpu(sizes: str) -> None:
    shape = jax.export.symbolic_shape(sizes)
    query = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    segments = jax.ShapeDtypeStruct(shape[:2], jnp.int32)

    def attend(query: jax.Array, segments: jax.Array) -> jax.Array:
        inputs = AttentionInputs(query_segments=segments, key_segments=segments)
        return disentangled_attention(query, query, query, inputs).context

    with jax.sharding.use_abstract_mesh(gpu_mesh("NVIDIA H200")):
        assert "wgmma" not in str(jax.make_jaxpr(attend)(query, segments))


def test_mesh_with_unknown_axes_is_refused() -> None:
    query, key, value, inputs, _ = attention_case(17)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"the axes batch, but .* over data, zero, fsdp, tensor"):
        jax.eval_shape(with_implementation("pallas"), query, key, value, inputs)


def test_unsupported_head_size_is_refused() -> None:
    query, key, value, inputs, _ = attention_case(5, size=160)
    with pytest.raises(ValueError, match="head size is 160 and the kernel takes at most 128; use 'xla' or 'auto'"):
        disentangled_attention(query, key, value, inputs, implementation="pallas")
