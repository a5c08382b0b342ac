"""The embedding look-up on a mesh: which of two collectives brings tables and ids together, and sums gradients."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from .mesh import BATCH_AXES, batch_axes, batch_devices, current_device_kind, mesh_in_use, with_spec
from .table import matching_rules, partition_spec

_LANES = 128  # of a TPU's registers: the size of a tile along the last dimension


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """What the devices of a shard_map have to know about the whole table.

    Attributes:
      words: Number of rows of the whole table.
      axes: Sizes of the mesh's axes.
      exchange_vectors: Exchange the vectors that were looked up; otherwise the table.
      gradient: How the gradient of the table is split.
    """

    words: int
    axes: dict[str, int]
    exchange_vectors: bool
    gradient: PartitionSpec


def lookup(
    table: Float[Array | np.ndarray, "V D"],
    ids: Int[Array | np.ndarray, "*batch"],
    *,
    path: str,
    delta: Float[Array | np.ndarray, "V D"] | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "*batch D"]:
    """Looks up rows of an embedding table. An id outside the table reads NaN and adds nothing to the gradient.

    On a mesh the gradient is summed directly into the shards of the table's moments: without help, XLA sums the whole
    gradient on all devices, whatever the sharding of the moments. That sum, and the look-up in a table that is split
    along D, have to exchange either the vectors that were looked up or the table; the smaller of the two is exchanged.
    The look-up on a mesh has no forward-mode derivative.

    Args:
      table: The embeddings of all words.
      ids: The first dimension is the batch, which the mesh splits.
      path: Parameter path of the table, or an end of it that a sharding rule matches. Without a rule, or if the mesh
        does not divide the batch, the look-up is a plain one and XLA decides how to split it.
      delta: A table of the same path whose rows are added.
      dtype: Of the result. Rows are added before they are cast, and cast before they are exchanged.
    """
    inside = (ids >= 0) & (ids < len(table))
    tables = (table,) if delta is None else (table, delta)
    vectors = _look_up_inside(tables, jnp.clip(ids, 0, len(table) - 1), path, dtype)
    return jnp.where(inside[..., None], vectors, jnp.nan)


def _look_up_inside(
    tables: Sequence[Float[Array | np.ndarray, "V D"]], ids: Int[Array, "*batch"], path: str, dtype: jnp.dtype
) -> Float[Array, "*batch D"]:
    """Looks up sums of rows of tables for ids that are all in them, as `lookup` describes."""
    mesh = mesh_in_use()
    if mesh is None or ids.ndim < 2 or ids.shape[0] % batch_devices(mesh) or not matching_rules(path):
        return _sum_of_rows(tables, ids).astype(dtype)
    tables = tuple(jnp.asarray(table) for table in tables)
    words, dtypes = len(tables[0]), [table.dtype for table in tables]
    batch = PartitionSpec(batch_axes(mesh))
    parameter, gradient = (partition_spec(path, tables[0].shape, mesh, moment=moment) for moment in (False, True))
    vectors_per_device = ids.size // batch_devices(mesh)
    exchange = _Exchange(words, dict(mesh.shape), vectors_per_device < words, gradient)

    @jax.custom_vjp
    def find(tables: tuple[jax.Array, ...], ids: jax.Array) -> jax.Array:
        local = functools.partial(_find_vectors, exchange=exchange, dtype=dtype)
        return jax.shard_map(local, in_specs=(parameter, batch), out_specs=batch, check_vma=False)(tables, ids)

    def backward(ids: jax.Array, cotangent: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        local = functools.partial(_add_vectors, exchange=exchange, dtype=dtypes[0])
        add = jax.shard_map(local, in_specs=(batch, batch), out_specs=gradient, check_vma=False)
        total = add(ids, cotangent)
        return tuple(total.astype(dtype) for dtype in dtypes), None  # each table is a summand

    find.defvjp(lambda tables, ids: (find(tables, ids), ids), backward)
    return find(tables, ids)


def _sum_of_rows(
    tables: Sequence[Float[Array | np.ndarray, "words features"]], ids: Int[Array, "*batch"]
) -> Float[Array, "*batch features"]:
    return functools.reduce(jnp.add, [jnp.take(table, ids, axis=0, mode="clip") for table in tables])


def _find_vectors(
    tables: tuple[Float[Array, "words features"], ...], ids: Int[Array, "*batch"], *, exchange: _Exchange, dtype: Any
) -> Float[Array, "*batch D"]:
    """Looks up this device's ids in tables of which it holds a shard. Runs inside a shard_map.

    The axis `fsdp` splits features, and its devices have different ids. Either each device looks up its own features
    for the ids of all of them, and an all-to-all then trades features for ids; or all devices gather the whole width
    of the tables first. The axis `tensor` splits words, and its devices have the same ids.
    """
    features_are_split = exchange.axes.get("fsdp", 1) > 1
    if features_are_split and exchange.exchange_vectors:
        ids = jax.lax.all_gather(ids, "fsdp", tiled=True)
    elif features_are_split:
        total = functools.reduce(jnp.add, tables).astype(dtype)
        tables = (jax.lax.all_gather(total, "fsdp", axis=1, tiled=True),)
    words = len(tables[0])
    words_are_split = words < exchange.words
    if words_are_split:
        ids = ids - jax.lax.axis_index("tensor") * words
    vectors = _sum_of_rows(tables, ids).astype(dtype)
    if words_are_split:  # 0 for the words of other devices, so that the sum below is the one vector
        vectors = jnp.where(((ids >= 0) & (ids < words))[..., None], vectors, 0)
    if features_are_split and exchange.exchange_vectors:
        vectors = jax.lax.all_to_all(vectors, "fsdp", split_axis=0, concat_axis=vectors.ndim - 1, tiled=True)
    return jax.lax.psum(vectors, "tensor") if words_are_split else vectors


def _add_vectors(
    ids: Int[Array, "*batch"], vectors: Float[Array, "*batch D"], *, exchange: _Exchange, dtype: Any
) -> Float[Array, "words features"]:
    """Returns this device's shard of the table's gradient: all devices' vectors summed at their ids, in a shard_map.

    They are exchanged as they are, and summed in `dtype`, that of the table.

    Each mesh axis takes part once. An axis that splits features of the gradient exchanges vectors before the sum or
    scatters the sum; `tensor` selects words; `zero` scatters the sum over words; the axes that replicate the gradient
    add up the shards that remain.
    """
    over_words, over_features = (
        names if isinstance(names, tuple) else (names,) if names else () for names in exchange.gradient
    )
    ids, vectors = ids.reshape(-1), vectors.reshape(-1, vectors.shape[-1])
    if exchange.exchange_vectors and over_features:
        ids = jax.lax.all_gather(ids, over_features, tiled=True)
        vectors = jax.lax.all_to_all(vectors, over_features, split_axis=1, concat_axis=0, tiled=True)
    words = exchange.words
    if "tensor" in over_words:  # all devices along `tensor` have the same vectors; each adds those of its own words
        words //= exchange.axes["tensor"]
        ids = ids - jax.lax.axis_index("tensor") * words
        # A negative index would count from the end of the table; one past the end is dropped.
        ids = jnp.where(ids < 0, words, ids)
    total = jnp.zeros((words, vectors.shape[1]), dtype).at[ids].add(vectors.astype(dtype), mode="drop")
    exchanged = over_features if exchange.exchange_vectors else ()
    return sum_over_batch(total, exchange.gradient, summed=exchanged)


def sum_over_batch(
    gradient: Float[Array, "..."], spec: PartitionSpec, *, summed: tuple[str, ...] = ()
) -> Float[Array, "..."]:
    """Sums a parameter's gradient over the devices that have different rows of the batch, inside a shard_map.

    Args:
      gradient: what this device's rows add to it, split by the axis `tensor` alone.
      spec: how the sum is split, by `partition_spec`.
      summed: mesh axes over which the gradient is summed and split already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rest = [axis for axis in BATCH_AXES if axis in mesh.shape and axis not in summed]
    for dimension, names in enumerate(spec):
        axes = tuple(axis for axis in (names if isinstance(names, tuple) else (names,)) if axis in rest)
        if axes:
            gradient = _scatter_sum(gradient, axes, dimension)
            rest = [axis for axis in rest if axis not in axes]
    return jax.lax.psum(gradient, tuple(rest)) if rest else gradient


def _scatter_sum(x: Float[Array, "..."], axes: tuple[str, ...], dimension: int) -> Float[Array, "..."]:
    """Sums over mesh axes, inside a shard_map, and returns this device's part along a dimension.

    A TPU does not divide the last dimension of an array that is stored by rows into parts that are not whole tiles: XLA
    would sum the whole array on all devices, twice the bytes. So such a matrix is transposed first.
    """
    mesh = jax.sharding.get_abstract_mesh()
    part = x.shape[dimension] // math.prod(mesh.shape[axis] for axis in axes)
    if x.ndim != 2 or dimension != 1 or part % _LANES == 0 or "TPU" not in current_device_kind():
        return jax.lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)
    columns = with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))
    return jax.lax.psum_scatter(columns, axes, scatter_dimension=0, tiled=True).T


def constrain_features(gradient: Float[Array, "words D"]) -> Float[Array, "words D"]:
    """Splits a part of a table's gradient along D over both axes that may split parameters and moments along D.

    It is for sums in a loop over chunks of words, which cannot be split along words. Returns the gradient unchanged
    without a mesh of ours, or if the mesh does not divide D.
    """
    mesh = mesh_in_use()
    if mesh is None:
        return gradient
    axes = tuple(axis for axis in ("fsdp", "zero") if axis in mesh.shape)
    if gradient.shape[1] % math.prod(mesh.shape[axis] for axis in axes):
        return gradient
    return with_spec(gradient, PartitionSpec(None, axes))
