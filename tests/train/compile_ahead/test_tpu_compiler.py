"""Tests the topologies, and the TPU compiler's answers about memory, flags and traffic between slices."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax.errors import MissingPackageError, UserError
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead import tpu_compiler
from deberta_jax.train.compile_ahead.compile_process import compile_with_schedules
from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.tpu_compiler import (
    CHIPS,
    GIB,
    OutOfMemoryError,
    compile_for_tpu,
    parse_out_of_memory,
    topology,
    torus_shape,
    trace,
)
from deberta_jax.train.compile_ahead.xla_flags import XLA_FLAGS

from ...support.tpu_topologies import needs_libtpu, small_slice


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("the total memory required for HLO temporaries (63.66G) exceeds available HBM (15.75G).", 63.66),
        ("Ran out of memory in memory space hbm. Used 16.09G of 15.75G hbm. Exceeded hbm capacity by 346.52M.", 16.09),
    ],
)
def test_sizes_are_read_from_messages_about_memory(message: str, needed: float) -> None:
    error = parse_out_of_memory(message)
    assert error is not None
    assert (error.needed, error.available) == (int(needed * GIB), int(15.75 * GIB))
    assert parse_out_of_memory("Ran out of memory in memory space vmem") is None


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e-16", "v5litepod:4x4", ""])
def test_unknown_topology_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError) as error:
        topology(name)
    assert f"no topology {name!r}" in str(error.value)
    assert all(f"{kind}: {' '.join(chip.shapes)}" in str(error.value) for kind, chip in CHIPS.items())


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5e:2x2", 0, "slices is 0; give 1 or more"),
        ("v4:2x2x1", 2, "between slices of v4 is not published; give one slice, or a chip of v5e, v5p, v6e, tpu7x"),
    ],
)
def test_impossible_number_of_slices(name: str, slices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        topology(name, slices=slices)


def test_missing_libtpu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install deberta-jax\[tpu\]"):
        topology("v5e:2x2")


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5e:16x16", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_topology_has_the_devices_of_its_shape(name: str) -> None:
    chip, devices = topology(name)
    assert len(devices) == chip.devices * math.prod(torus_shape(name))


@needs_libtpu
def test_devices_of_several_slices_have_a_slice_index() -> None:
    devices = topology("v5e:2x4", slices=3).devices
    assert [sum(device.slice_index == number for device in devices) for number in range(3)] == [8, 8, 8]


@needs_libtpu
@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("xla_no_such_flag", "true", "does not know the flag xla_no_such_flag; leave it out"),
        ("xla_enable_async_all_reduce", "maybe", "does not accept 'maybe' as the value of the flag xla_enable_async"),
    ],
)
def test_wrong_flag_is_named(flag: str, value: str, message: str) -> None:
    sharding = NamedSharding(make_mesh(devices=topology("v5e:1x1").devices), PartitionSpec())
    traced = trace(jax.jit(lambda x: x + 1), jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding))
    with pytest.raises(UserError, match=message):
        compile_for_tpu(traced, flags={flag: value})


@needs_libtpu
@pytest.mark.slow
def test_each_chip_sends_a_shard_of_the_gradient_to_the_other_slice() -> None:
    """The sum within a slice uses the links of the slice, the sum over slices the network between them."""
    devices = sorted(topology("v5e:2x2", slices=2).devices, key=lambda device: (device.slice_index, device.id))
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def step(weight: jax.Array, x: jax.Array) -> jax.Array:
        return weight - jax.grad(lambda weight: jnp.mean(jnp.sin(x @ weight)))(weight)

    weight = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=replicated)
    batch = jax.ShapeDtypeStruct((8 * 128, 1024), jnp.float32, sharding=split)
    compiled = compile_for_tpu(trace(jax.jit(step), weight, batch), flags=XLA_FLAGS["v5e"])
    collectives = read_cost(compiled.as_text()).collectives
    shard = 1024 * 1024 * 4 // 4
    between = [(item.kind, item.group, item.bytes, item.wire_bytes) for item in collectives if item.network == "dcn"]
    assert between == [("all-reduce", 2, shard, shard)]
    assert {item.group for item in collectives if item.network == "ici"} == {4}


@needs_libtpu
@pytest.mark.parametrize(
    "kind", [kind if kind == "v5e" else pytest.param(kind, marks=pytest.mark.slow) for kind in CHIPS]
)
def test_table_of_chips_agrees_with_the_compiler(kind: str) -> None:
    """HBM equals the size in the compiler's message. The clock is right: a large product stays below the peak."""
    chip, devices = topology(small_slice(kind))
    sharding = NamedSharding(make_mesh(devices=devices[:1]), PartitionSpec())
    huge = jax.ShapeDtypeStruct((200_000, 100_000), jnp.float32, sharding=sharding)
    with pytest.raises(OutOfMemoryError) as error:
        compile_for_tpu(trace(jax.jit(lambda x: x + 1), huge))
    assert error.value.available == chip.hbm
    square = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=sharding)
    cycles = read_cost(compile_for_tpu(trace(jax.jit(jnp.dot), square, square)).as_text()).cycles
    assert 0.6 < 2 * 8192**3 * chip.clock / cycles / chip.peak < 1


def _trace_product(name: str) -> Any:
    sharding = NamedSharding(make_mesh(devices=topology(name).devices[:1]), PartitionSpec())
    square = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=sharding)
    return trace(jax.jit(jnp.dot), square, square)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", CHIPS)
def test_schedule_of_a_product_has_its_operations(kind: str) -> None:
    """The bound of a product without padding is its FLOPs at the published peak, or more bundles than that."""
    name = small_slice(kind)
    peaks = CHIPS[kind].peaks
    compiled = compile_with_schedules(functools.partial(_trace_product, name))
    bound = read_cost(compiled.text, schedules=compiled.schedules, peaks=peaks).bound
    assert bound is not None
    assert bound.matrix_cycles == pytest.approx(2 * 2048**3 / CHIPS[kind].peak * CHIPS[kind].clock, rel=0.01)
    assert bound.unscheduled_cycles == 0
    assert bound.hbm_bytes >= 3 * 2048**2 * 2
