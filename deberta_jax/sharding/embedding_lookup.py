"""The embedding look-up on a mesh: which of two collectives brings tables and ids together, and sums gradients."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from .mesh import BATCH_AXES, batch_axes, batch_devices, mesh_in_use, with_spec
from .table import matching_rules, partition_spec


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
    table: Float[Array | np.ndarray, "V D"], ids: Int[Array | np.ndarray, "*batch"], *, path: str
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
    """
    inside = (ids >= 0) & (ids < len(table))
    vectors = _look_up_inside(table, jnp.clip(ids, 0, len(table) - 1), path)
    return jnp.where(inside[..., None], vectors, jnp.nan)


def _look_up_inside(
    table: Float[Array | np.ndarray, "V D"], ids: Int[Array, "*batch"], path: str
) -> Float[Array, "*batch D"]:
    """Looks up rows of an embedding table for ids that are all in it, as `lookup` describes."""
    mesh = mesh_in_use()
    if mesh is None or ids.ndim < 2 or ids.shape[0] % batch_devices(mesh) or not matching_rules(path):
        return jnp.take(table, ids, axis=0, mode="clip")
    table = jnp.asarray(table)
    batch = PartitionSpec(batch_axes(mesh))
    parameter, gradient = (partition_spec(path, table.shape, mesh, moment=moment) for moment in (False, True))
    vectors_per_device = ids.size // batch_devices(mesh)
    exchange = _Exchange(len(table), dict(mesh.shape), vectors_per_device < len(table), gradient)

    @jax.custom_vjp
    def find(table: jax.Array, ids: jax.Array) -> jax.Array:
        local = functools.partial(_find_vectors, exchange=exchange)
        return jax.shard_map(local, in_specs=(parameter, batch), out_specs=batch, check_vma=False)(table, ids)

    def backward(ids: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
        local = functools.partial(_add_vectors, exchange=exchange)
        add = jax.shard_map(local, in_specs=(batch, batch), out_specs=gradient, check_vma=False)
        return add(ids, cotangent), None

    find.defvjp(lambda table, ids: (find(table, ids), ids), backward)
    return find(table, ids)


def _find_vectors(
    table: Float[Array, "words features"], ids: Int[Array, "*batch"], *, exchange: _Exchange
) -> Float[Array, "*batch D"]:
    """Looks up this device's ids in a table of which it holds a shard. Runs inside a shard_map.

    The axis `fsdp` splits features, and its devices have different ids. Either each device looks up its own features
    for the ids of all of them, and an all-to-all then trades features for ids; or all devices gather the whole width
    of the table first. The axis `tensor` splits words, and its devices have the same ids.
    """
    features_are_split = exchange.axes.get("fsdp", 1) > 1
    if features_are_split and exchange.exchange_vectors:
        ids = jax.lax.all_gather(ids, "fsdp", tiled=True)
    elif features_are_split:
        table = jax.lax.all_gather(table, "fsdp", axis=1, tiled=True)
    words_are_split = len(table) < exchange.words
    if words_are_split:
        ids = ids - jax.lax.axis_index("tensor") * len(table)
    vectors = jnp.take(table, ids, axis=0, mode="clip")
    if words_are_split:  # 0 for the words of other devices, so that the sum below is the one vector
        vectors = jnp.where(((ids >= 0) & (ids < len(table)))[..., None], vectors, 0)
    if features_are_split and exchange.exchange_vectors:
        vectors = jax.lax.all_to_all(vectors, "fsdp", split_axis=0, concat_axis=vectors.ndim - 1, tiled=True)
    return jax.lax.psum(vectors, "tensor") if words_are_split else vectors


def _add_vectors(
    ids: Int[Array, "*batch"], vectors: Float[Array, "*batch D"], *, exchange: _Exchange
) -> Float[Array, "words features"]:
    """Returns this device's shard of the table's gradient: all devices' vectors summed at their ids, in a shard_map.

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
    total = jnp.zeros((words, vectors.shape[1]), vectors.dtype).at[ids].add(vectors, mode="drop")
    if over_features and not exchange.exchange_vectors:
        total = jax.lax.psum_scatter(total, over_features, scatter_dimension=1, tiled=True)
    if "zero" in over_words:
        total = jax.lax.psum_scatter(total, "zero", scatter_dimension=0, tiled=True)
    split = over_words + over_features
    return jax.lax.psum(total, tuple(axis for axis in BATCH_AXES if axis in exchange.axes and axis not in split))


def sum_over_batch(gradient: Float[Array, "..."], spec: PartitionSpec) -> Float[Array, "..."]:
    """Sums a parameter's gradient over the devices that have different rows of the batch, inside a shard_map.

    Args:
      gradient: what this device's rows add to it, split by the axis `tensor` alone.
      spec: how the sum is split, by `partition_spec`.
    """
    rest = [axis for axis in BATCH_AXES if axis in jax.sharding.get_abstract_mesh().shape]
    for dimension, names in enumerate(spec):
        axes = tuple(axis for axis in (names if isinstance(names, tuple) else (names,)) if axis in rest)
        if axes:
            gradient = jax.lax.psum_scatter(gradient, axes, scatter_dimension=dimension, tiled=True)
            rest = [axis for axis in rest if axis not in axes]
    return jax.lax.psum(gradient, tuple(rest)) if rest else gradient


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
