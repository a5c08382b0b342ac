"""ONE table: parameter path -> logical axes -> mesh axes. Modules know nothing of devices.

Axes of a mesh, any of which may have size 1. The first three split the batch:
  data    replicates parameters and optimizer moments; the only one that crosses slices
  zero    replicates parameters and splits the optimizer's moments (ZeRO-1); best one axis of a TPU's torus
  fsdp    splits parameters and moments
  tensor  splits heads, feed-forward and vocabulary
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ..errors import UserError

MESH_AXES = ("data", "zero", "fsdp", "tensor")
BATCH_AXES = ("data", "zero", "fsdp")

# Which mesh axis a logical axis is split over.
LOGICAL_AXES = {"vocab": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp"}

# End of a parameter's path -> the logical axis of each of its dimensions. A path matches exactly one row.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"word_embeddings/(embedding|delta)", ("vocab", "embed")),
    (r"(position|token_type|rel)_embeddings/(embedding|delta)", (None, "embed")),
    (r"embed_proj/kernel", (None, "embed")),
    (r"attention/(query|key|value|pos_key|pos_query)_proj/kernel", ("embed", "heads")),
    (r"attention/(query|key|value|pos_key|pos_query)_proj/bias", ("heads",)),
    (r"attention/output/kernel", ("heads", "embed")),
    (r"feed_forward/intermediate/kernel", ("embed", "mlp")),
    (r"feed_forward/intermediate/bias", ("mlp",)),
    (r"feed_forward/output/kernel", ("mlp", "embed")),
    (r"(attention|feed_forward)/output/bias", (None,)),
    (r"layer_norm/(scale|bias)", (None,)),
    (r"conv/conv/kernel", (None, None, "embed")),
    (r"conv/conv/bias", (None,)),
    (r"mlm_head/bias", ("vocab",)),
    (r"(mlm_head/dense|rtd_head/dense|pooler/dense|token_proj)/kernel", ("embed", None)),
    (r"(span_)?classifier/kernel", (None, None)),
    (r"(dense|(span_)?classifier|token_proj|embed_proj)/bias", (None,)),
)
_TILE = (8, 128)  # float32 in a TPU's memory: what a shard holds beside whole tiles is padding


# ---------------------------------------------------------------- the mesh


def make_mesh(
    *, data: int = -1, zero: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices; `data` -1 takes what the other axes leave. Only `data` crosses slices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not divide it; or `data` is no multiple of
        the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    inner = zero * fsdp * tensor
    if data == -1:
        if len(devices) % inner:
            raise UserError(
                f"a mesh of zero {zero} x fsdp {fsdp} x tensor {tensor} does not divide {len(devices)} devices; give "
                f"sizes whose product divides {len(devices)}"
            )
        data = len(devices) // inner
    if data * inner != len(devices):
        raise UserError(
            f"a mesh of data {data} x zero {zero} x fsdp {fsdp} x tensor {tensor} needs {data * inner} devices, "
            f"there are {len(devices)}; give sizes that multiply to that, or data -1"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise UserError(
            f"data {data} is not a multiple of the {slices} slices, which only the data axis crosses; give smaller "
            f"zero, fsdp or tensor axes"
        )
    shape = (data // slices, zero, fsdp, tensor)
    # An axis of the torus is split where the sizes ask for it: 16 x 4 x 4 on 16 x 16.
    if slices > 1:
        laid = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    else:
        laid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    # Auto axes: the default, Explicit, does not work with Flax Linen.
    return Mesh(laid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


# ---------------------------------------------------------------- parameters and moments


def matching_rules(path: str) -> list[int]:
    """Which rows of the table a parameter path matches: one, for a parameter of this library."""
    return [row for row, (pattern, _) in enumerate(RULES) if re.search(rf"(^|/){pattern}$", path)]


def path_of(key_path: tuple[Any, ...]) -> str:
    """A jax key path as words with slashes."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in key_path)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array in a tree of parameters, or in a training state around them.

    What lies under a state's `opt_state` is an optimizer's: its moments, at paths that end like their parameter's, are
    sharded with it and over the axis `zero` as well. Scalars and keys, which no row of the table names, are replicated.

    Raises:
      ValueError: a dimension does not divide by its mesh axis; the parameter, its size and the axis are named.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        return NamedSharding(mesh, partition(path, leaf.shape, mesh, moment=path.startswith("opt_state/")))

    return jax.tree.map_with_path(sharding, tree)


def partition(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, *, moment: bool) -> PartitionSpec:
    """How a parameter is split over a mesh, which need not have all of our axes; or a moment or gradient of it.

    Moments of matrices are split over `zero` as well, along the dimension that leaves whole tiles, rather one that
    is whole so far; where no dimension divides, and for vectors, they are not. Raises as `shardings`.
    """
    rows = matching_rules(path)
    if not rows:
        if len(shape) <= 1:
            return PartitionSpec()
        raise UserError(f"no sharding rule for {path} of shape {shape}")
    named = [LOGICAL_AXES.get(axis or "") for axis in RULES[rows[0]][1]]
    axes: list[Any] = [axis if axis in mesh.shape else None for axis in named]
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise UserError(
                f"{path} has a dimension of {size}, which does not divide by the mesh axis {axis} of size "
                f"{mesh.shape[axis]}; choose a smaller {axis} axis"
            )
    zero = mesh.shape.get("zero", 1)
    if moment and zero > 1 and len(shape) > 1:
        split = [mesh.shape[axis] if axis else 1 for axis in axes]
        dimension = _zero_dimension(shape, split, zero)
        if dimension is not None:
            axes[dimension] = (axes[dimension], "zero") if split[dimension] > 1 else "zero"
    return PartitionSpec(*axes)


def _zero_dimension(shape: tuple[int, ...], split: list[int], zero: int) -> int | None:
    """The dimension to split by `zero` of an array whose dimensions are split already, or None."""

    def rank(dimension: int) -> tuple[bool, bool, int]:
        tile = dict(zip(range(len(shape))[-2:], _TILE, strict=True)).get(dimension, 1)
        ragged = shape[dimension] // (split[dimension] * zero) % tile != 0
        return ragged, split[dimension] > 1, dimension

    possible = [number for number, size in enumerate(shape) if size % (split[number] * zero) == 0]
    return min(possible, key=rank, default=None)


def constrain(tree: Any, *, moments: bool) -> Any:
    """Inside jit: a tree of parameters (or of gradients or updates) placed as the table says, or as their moments are.

    Does nothing where no mesh of ours is in use (`jax.set_mesh`).
    """
    mesh = _mesh_in_use()
    if mesh is None:
        return tree

    def place(key_path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        spec = partition(path_of(key_path), leaf.shape, mesh, moment=moments)
        return _place(leaf, spec)

    return jax.tree.map_with_path(place, tree)


@functools.partial(jax.jit, static_argnums=1, inline=True)  # outside jit too, where the array may be on one device
def _place(x: jax.Array, split: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, split)


def _mesh_in_use() -> AbstractMesh | None:
    """The mesh in use if the compiler lays out arrays on its axes and they are ours: not within a shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = set(mesh.axis_names) <= set(MESH_AXES) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours and mesh.size > 1 else None


# ---------------------------------------------------------------- the batch


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over their first dimension."""
    return NamedSharding(mesh, PartitionSpec(_batch_axes(mesh)))


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split: its rows must be a multiple."""
    return math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def constrain_batch(x: jax.Array) -> jax.Array:
    """Inside jit: activations [B, ...] split over their first dimension alone, as the batch is.

    Where parameters are split along features XLA would otherwise split activations along features too, and exchange
    them at every layer. Does nothing where no mesh of ours is in use, or B does not divide.
    """
    mesh = _mesh_in_use()
    if mesh is None or x.shape[0] % batch_devices(mesh):
        return x
    return _place(x, PartitionSpec(_batch_axes(mesh)))


def _batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def lookup(table: jax.Array, ids: jax.Array, *, path: str) -> jax.Array:
    """Rows of an embedding table: table [V, E], ids int [B, ...] -> [B, ..., E], of an id outside the nearest row.

    On a mesh the gradient is summed where its moments lie: left to itself, XLA sums it on all devices, whatever the
    moments' sharding says. What is exchanged for that, and for a table that is split along E, is the smaller of the
    two: the rows that were looked up, or the table. No forward-mode derivative there.

    Args:
      path: of the table, or the end of it that the table of rules knows; without a rule the lookup is a plain one.
    """
    mesh = _mesh_in_use()
    if mesh is None or ids.ndim < 2 or ids.shape[0] % batch_devices(mesh) or not matching_rules(path):
        return jnp.take(table, ids, axis=0, mode="clip")
    ids = jnp.clip(ids, 0, len(table) - 1)
    exchange_rows = ids.size // batch_devices(mesh) < len(table)
    options = {"words": len(table), "axes": dict(mesh.shape), "exchange_rows": exchange_rows}
    batch = PartitionSpec(_batch_axes(mesh))
    whole, split = (partition(path, table.shape, mesh, moment=moment) for moment in (False, True))

    @jax.custom_vjp
    def find(table: jax.Array, ids: jax.Array) -> jax.Array:
        local = functools.partial(_find_rows, **options)
        return jax.shard_map(local, in_specs=(whole, batch), out_specs=batch, check_vma=False)(table, ids)

    def backward(ids: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
        local = functools.partial(_add_rows, split=split, **options)
        return jax.shard_map(local, in_specs=(batch, batch), out_specs=split, check_vma=False)(ids, cotangent), None

    find.defvjp(lambda table, ids: (find(table, ids), ids), backward)
    return find(table, ids)


def _find_rows(table: jax.Array, ids: jax.Array, *, words: int, axes: dict[str, int], exchange_rows: bool) -> jax.Array:
    """In a shard_map: rows [b, ..., E] of a table of which this device has a part, for its ids [b, ...]."""
    split = axes.get("fsdp", 1) > 1
    if split and exchange_rows:
        ids = jax.lax.all_gather(ids, "fsdp", tiled=True)
    elif split:
        table = jax.lax.all_gather(table, "fsdp", axis=1, tiled=True)
    own = len(table) < words
    if own:  # each device finds the rows of its own words; the others are 0
        ids = ids - jax.lax.axis_index("tensor") * len(table)
    rows = jnp.take(table, ids, axis=0, mode="clip")
    if own:
        rows = jnp.where(((ids >= 0) & (ids < len(table)))[..., None], rows, 0)
    if split and exchange_rows:
        rows = jax.lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=rows.ndim - 1, tiled=True)
    return jax.lax.psum(rows, "tensor") if own else rows


def _add_rows(
    ids: jax.Array, rows: jax.Array, *, words: int, axes: dict[str, int], exchange_rows: bool, split: PartitionSpec
) -> jax.Array:
    """In a shard_map: this device's part of the sum of all devices' rows [b, ..., E] at their ids [b, ...].

    The result [words, E] is split as `split` says. axes: the sizes of the mesh.
    """
    over_words, over_features = (names if isinstance(names, tuple) else (names,) if names else () for names in split)
    ids, rows = ids.reshape(-1), rows.reshape(-1, rows.shape[-1])
    if exchange_rows and over_features:
        ids = jax.lax.all_gather(ids, over_features, tiled=True)
        rows = jax.lax.all_to_all(rows, over_features, split_axis=1, concat_axis=0, tiled=True)
    if "tensor" in over_words:  # each device has the same rows, and adds up those of its own words
        words //= axes["tensor"]
        ids = ids - jax.lax.axis_index("tensor") * words
        ids = jnp.where(ids < 0, words, ids)  # a negative index would count from the end; one past it is dropped
    total = jnp.zeros((words, rows.shape[1]), rows.dtype).at[ids].add(rows, mode="drop")
    if over_features and not exchange_rows:
        total = jax.lax.psum_scatter(total, over_features, scatter_dimension=1, tiled=True)
    if "zero" in over_words:
        total = jax.lax.psum_scatter(total, "zero", scatter_dimension=0, tiled=True)
    left = tuple(axis for axis in BATCH_AXES if axis in axes and axis not in over_words + over_features)
    return jax.lax.psum(total, left)


def constrain_features(x: jax.Array) -> jax.Array:
    """Inside jit: a part of a table's gradient [words, E], split along E as far as parameters and moments may be.

    For sums in a loop over words, which cannot be split along words. Does nothing where no mesh of ours is in use, or
    E does not divide.
    """
    mesh = _mesh_in_use()
    axes = tuple(axis for axis in ("fsdp", "zero") if mesh is not None and axis in mesh.shape)
    if mesh is None or x.shape[1] % math.prod(mesh.shape[axis] for axis in axes):
        return x
    return _place(x, PartitionSpec(None, axes))


@functools.cache  # asked for every array of every batch
def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Which rows of each global batch of `batch` rows this process feeds: int64, in order; not to be written to.

    Not always consecutive ones. Where the axis `tensor` crosses processes, several feed the same rows.

    Raises:
      ValueError: the batch does not divide.
    """
    if batch % batch_devices(mesh):
        raise UserError(
            f"a batch of {batch} rows does not divide over {batch_devices(mesh)} devices (data x zero x fsdp); give a "
            f"multiple of {batch_devices(mesh)}"
        )
    shards = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    rows = np.unique(np.concatenate([np.arange(batch, dtype=np.int64)[shard] for shard in shards]))
    rows.flags.writeable = False
    return rows


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, those of `local_rows` in that order -> the global batch on the mesh.

    Raises:
      ValueError: the rows do not divide.
    """
    sharding, parts = batch_sharding(mesh), batch_devices(mesh)
    local_parts = len(local_rows(mesh, parts))

    def place(name: str, rows: np.ndarray) -> jax.Array:
        if len(rows) % local_parts:
            raise UserError(
                f"{name} has {len(rows)} rows, which do not divide over the {local_parts} parts of the batch that this "
                f"process feeds; give a multiple of {local_parts}"
            )
        total = len(rows) // local_parts * parts
        mine = local_rows(mesh, total)

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            first = np.searchsorted(mine, start)
            return rows[first : first + stop - start]

        return jax.make_array_from_callback((total, *rows.shape[1:]), sharding, shard)

    return {name: place(name, np.asarray(rows)) for name, rows in batch.items()}
