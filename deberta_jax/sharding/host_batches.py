"""The rows of a global batch that each process feeds, and the global batch made of them."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int64, Shaped

from .mesh import batch_devices, batch_sharding


@functools.cache  # place_batch needs it for every array of every batch
def local_batch_indices(mesh: Mesh, batch_size: int) -> Int64[np.ndarray, "rows"]:
    """Returns the indices of the rows that this process feeds to each global batch; sorted and read-only.

    The indices need not be consecutive: the layout of a TPU mesh may give a process shards from several places of the
    batch. If the axis `tensor` crosses processes, several processes feed the same rows.

    Raises:
      ValueError: The mesh does not divide the batch size.
    """
    if batch_size % batch_devices(mesh):
        raise ValueError(
            f"a batch of {batch_size} rows does not divide over {batch_devices(mesh)} devices (data x zero x fsdp); "
            f"give a multiple of {batch_devices(mesh)}"
        )
    shards = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    # Devices along `tensor` hold the same shard, so the same rows come up several times.
    indices = np.unique(np.concatenate([np.arange(batch_size, dtype=np.int64)[shard] for shard in shards]))
    indices.flags.writeable = False
    return indices


def place_batch(batch: dict[str, Shaped[np.ndarray, "rows ..."]], mesh: Mesh) -> dict[str, Shaped[Array, "B ..."]]:
    """Returns the global batch on the mesh, made of the rows that each process feeds.

    Args:
      batch: This process's rows, in the order of `local_batch_indices`.
      mesh: The mesh to split the batch over.

    Raises:
      ValueError: The number of rows is not a multiple of the shards that this process feeds.
    """
    sharding, all_shards = batch_sharding(mesh), batch_devices(mesh)
    local_shards = len(local_batch_indices(mesh, all_shards))

    def place(name: str, rows: np.ndarray) -> jax.Array:
        if len(rows) % local_shards:
            raise ValueError(
                f"{name} has {len(rows)} rows, which do not divide over the {local_shards} shards of the batch that "
                f"this process feeds; give a multiple of {local_shards}"
            )
        batch_size = len(rows) // local_shards * all_shards
        indices = local_batch_indices(mesh, batch_size)

        def shard(global_slices: Any) -> np.ndarray:
            # JAX asks for a slice of the global batch; find the same rows among those of this process.
            start, stop, _ = global_slices[0].indices(batch_size)
            first = np.searchsorted(indices, start)
            return rows[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), sharding, shard)

    return {name: place(name, np.asarray(rows)) for name, rows in batch.items()}
