"""The mesh over devices of one or several slices, and constraints on it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType, PartitionSpec

from deberta_jax.errors import UserError
from deberta_jax.sharding import MESH_AXES, constrain, constrain_batch, constrain_features, make_mesh


def test_errors_name_the_sizes_and_the_devices() -> None:
    with pytest.raises(UserError, match=r"needs 24 devices, but there are 8"):
        make_mesh(data=2, fsdp=4, tensor=3)
    with pytest.raises(UserError, match=r"zero 1 x fsdp 1 x tensor 3 does not divide 8 devices"):
        make_mesh(tensor=3)
    with pytest.raises(UserError, match="the mesh axis zero has size 0; give at least 1"):
        make_mesh(zero=0)
    with pytest.raises(UserError, match="the mesh axis data has size -2; give at least 1"):
        make_mesh(data=-2)


def test_a_mesh_that_does_not_fit_the_topology_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("Failed to find assignment for logical_axis_index 0")

    monkeypatch.setattr(mesh_utils, "create_device_mesh", fail)
    with pytest.raises(UserError, match=r"data 4 x zero 2 x fsdp 1 x tensor 1 does not fit the topology of 8 devices"):
        make_mesh(zero=2)


@dataclasses.dataclass(frozen=True, order=True)
class Device:
    """The attributes of a device that decide its place in a mesh."""

    slice_index: int
    id: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def test_only_the_data_axis_crosses_slices() -> None:
    devices = [Device(number % 2, number) for number in range(16)]
    mesh = make_mesh(zero=2, tensor=4, devices=devices)
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {"data": 2, "zero": 2, "fsdp": 1, "tensor": 4}
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    assert {device.id for device in mesh.devices.flat} == set(range(16))
    with pytest.raises(UserError, match="data 1 is not a multiple of the 2 slices"):
        make_mesh(zero=4, tensor=4, devices=devices)


def test_constraints_split_the_batch_alone_and_change_nothing_without_a_mesh_of_ours() -> None:
    x = jnp.arange(16.0 * 4).reshape(16, 4)
    params = {"attention": {"query_proj": {"kernel": jnp.ones((16, 16))}}}

    def constrain_all(x: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        return constrain_batch(x) * 2, constrain_features(x), constrain(params, moments=True)

    assert "sharding_constraint" not in str(jax.make_jaxpr(constrain_all)(x))
    mesh = make_mesh(zero=2, fsdp=2)
    with jax.set_mesh(mesh):
        doubled, gradient, placed = jax.jit(constrain_all)(x)
        assert doubled.sharding.shard_shape(doubled.shape) == (2, 4)
        assert gradient.sharding.shard_shape(gradient.shape) == (16, 1)
        kernel = placed["attention"]["query_proj"]["kernel"]
        assert math.prod(kernel.sharding.shard_shape(kernel.shape)) == 16 * 16 // 4
        assert constrain_batch(x).sharding.shard_shape(x.shape) == (2, 4)  # outside of jit
        np.testing.assert_array_equal(constrain_batch(x[:3]), x[:3])  # does not divide
        np.testing.assert_array_equal(constrain_features(x[:, :3]), x[:, :3])
        split = PartitionSpec(mesh.axis_names)
        inside = jax.jit(jax.shard_map(lambda x: constrain_all(x)[0], in_specs=split, out_specs=split))
        np.testing.assert_array_equal(inside(jnp.tile(x, (2, 1))), 2 * jnp.tile(x, (2, 1)))
    other = jax.make_mesh((8,), ("replica",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(other):
        assert "sharding_constraint" not in str(jax.make_jaxpr(constrain_all)(x))
