"""The mesh of devices, its axes, and how a batch is split over them.

Axes of a mesh, any of which may have size 1. The first three split the batch:
  data    replicates parameters and optimizer moments; the only axis that crosses TPU slices
  zero    replicates parameters and splits the optimizer's moments (ZeRO-1); fastest as one axis of a TPU's torus
  fsdp    splits parameters and moments
  tensor  splits heads, feed-forward and vocabulary
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from ..errors import UserError

MESH_AXES = ("data", "zero", "fsdp", "tensor")
BATCH_AXES = ("data", "zero", "fsdp")


def make_mesh(
    *, data: int = -1, zero: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns a mesh over all devices with the axes of `MESH_AXES`.

    Args:
      data: Size of the axis `data` (default: -1, the number of devices divided by the product of the other sizes).
      zero: Size of the axis `zero`.
      fsdp: Size of the axis `fsdp`.
      tensor: Size of the axis `tensor`.
      devices: The devices of the mesh (default: all devices of JAX).

    Raises:
      UserError: A size is less than 1; the product of the sizes is not, or does not divide, the number of devices;
        `data` is not a multiple of the number of slices; or the axes do not fit the topology of the devices.
    """
    devices = jax.devices() if devices is None else devices
    for name, size in {"data": 1 if data == -1 else data, "zero": zero, "fsdp": fsdp, "tensor": tensor}.items():
        if size < 1:
            raise UserError(f"the mesh axis {name} has size {size}; give at least 1")
    inner = zero * fsdp * tensor
    if data == -1:
        if len(devices) % inner:
            raise UserError(
                f"a mesh of zero {zero} x fsdp {fsdp} x tensor {tensor} does not divide {len(devices)} devices; give "
                f"sizes whose product divides {len(devices)}"
            )
        data = len(devices) // inner
    sizes = f"data {data} x zero {zero} x fsdp {fsdp} x tensor {tensor}"
    if data * inner != len(devices):
        raise UserError(
            f"a mesh of {sizes} needs {data * inner} devices, but there are {len(devices)}; give sizes whose product "
            f"is {len(devices)}, or data -1"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise UserError(
            f"data {data} is not a multiple of the {slices} slices, which only the data axis crosses; give smaller "
            f"zero, fsdp or tensor axes"
        )
    shape = (data // slices, zero, fsdp, tensor)
    # Splitting a physical axis allows sizes that are not sides of the torus, such as 16 x 4 x 4 on 16 x 16 chips.
    try:
        if slices > 1:
            arranged = mesh_utils.create_hybrid_device_mesh(
                shape, (slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
            )
        else:
            arranged = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    except NotImplementedError:  # JAX finds no assignment of mesh axes to the axes of the torus
        raise UserError(
            f"a mesh of {sizes} does not fit the topology of {len(devices)} devices of kind {devices[0].device_kind}; "
            "give sizes that are products of its sides"
        ) from None
    # Auto axes: the default, Explicit, does not work with Flax Linen.
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_in_use() -> AbstractMesh | None:
    """Returns the mesh set by `jax.set_mesh` if its axes are ours and the compiler may shard over them, else None.

    Inside a shard_map the axes are manual: each device sees only its own shard, and a sharding constraint is an error.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ours = set(mesh.axis_names) <= set(MESH_AXES) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours and mesh.size > 1 else None


def current_device_kind() -> str:
    """Returns the device kind of the current mesh, else of the default device.

    A mesh without devices, as for a compilation ahead of time, has a device kind, too.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.device_kind
    default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None or isinstance(default, str):  # a string names a platform
        default = jax.devices(default)[0]
    return default.device_kind


@functools.partial(jax.jit, static_argnums=1, inline=True)
def with_spec(x: Shaped[Array, "*shape"], spec: PartitionSpec) -> Shaped[Array, "*shape"]:
    """Constrains the sharding of an array on the mesh in use.

    The `jit` is for calls outside of jit, where the array may be on a single device and a bare constraint is an error.
    """
    return jax.lax.with_sharding_constraint(x, spec)


# ---------------------------------------------------------------- the batch


def batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Returns the axes of a mesh that split the batch."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches, which are split over their first dimension."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards of a batch. The batch size must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def constrain_batch(x: Shaped[Array, "B *features"]) -> Shaped[Array, "B *features"]:
    """Splits activations over the batch dimension alone.

    Where parameters are split along features, XLA would otherwise split activations along features too, and exchange
    them in every layer. Returns `x` unchanged without a mesh of ours, or if the mesh does not divide B.
    """
    mesh = mesh_in_use()
    if mesh is None or x.shape[0] % batch_devices(mesh):
        return x
    return with_spec(x, PartitionSpec(batch_axes(mesh)))


def is_gpu(device_kind: str) -> bool:
    """Returns whether a kind of device, as JAX names it, is an NVIDIA GPU."""
    return device_kind.startswith("NVIDIA")


def compiler_options(mesh: Mesh | None = None) -> dict[str, bool] | None:
    """Returns the compiler options to pass to `jax.jit` for whole models.

    On GPUs, matrix multiplications use cuBLAS only. Otherwise XLA also generates Triton kernels for each of them and
    times dozens of variants, which takes more than a minute for a training step (jax 0.11 on an H200).

    Args:
      mesh: the devices that will run the program (default: those of the current mesh, else the default device).
    """
    device_kind = current_device_kind() if mesh is None else mesh.devices.flat[0].device_kind
    return {"xla_gpu_enable_triton_gemm": False} if is_gpu(device_kind) else None
