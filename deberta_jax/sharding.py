"""ONE table: parameter path -> logical axes -> mesh axes. Modules know nothing of devices.

Axes of a mesh, any of which may have size 1: `data` splits the batch and replicates parameters, `fsdp` splits the
batch and the parameters, `tensor` splits heads, feed-forward and vocabulary.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

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
    (r"(dense|(span_)?classifier|token_proj)/bias", (None,)),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices; `data` -1 takes what the other axes leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not divide it.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        if len(devices) % (fsdp * tensor):
            raise ValueError(
                f"{len(devices)} devices do not divide by fsdp {fsdp} x tensor {tensor}; give sizes whose product "
                f"divides {len(devices)}"
            )
        data = len(devices) // (fsdp * tensor)
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"a mesh of data {data} x fsdp {fsdp} x tensor {tensor} needs {data * fsdp * tensor} devices, "
            f"there are {len(devices)}; give sizes that multiply to that, or data -1"
        )
    # Auto axes: jax.make_mesh's default, Explicit, does not work with Flax Linen.
    return jax.make_mesh((data, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def matching_rules(path: str) -> list[int]:
    """Which rows of the table a parameter path matches: one, for a parameter of this library."""
    return [row for row, (pattern, _) in enumerate(RULES) if re.search(rf"(^|/){pattern}$", path)]


def path_of(key_path: tuple[Any, ...]) -> str:
    """A jax key path as words with slashes."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in key_path)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array in a tree of parameters, or in a training state around them.

    Optimiser moments lie at paths that end like their parameter's and are sharded with it; scalars and keys, which
    no row of the table names, are replicated.

    Raises:
      ValueError: a dimension does not divide by its mesh axis; the parameter, its size and the axis are named.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path, rows = path_of(key_path), matching_rules(path_of(key_path))
        if not rows:
            if leaf.ndim <= 1:
                return NamedSharding(mesh, PartitionSpec())
            raise ValueError(f"no sharding rule for {path} of shape {leaf.shape}")
        axes = [LOGICAL_AXES.get(axis or "") for axis in RULES[rows[0]][1]]
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"{path} has a dimension of {size}, which does not divide by the mesh axis {axis} of size "
                    f"{mesh.shape[axis]}; choose a smaller {axis} axis"
                )
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over their first dimension."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> the global batch on the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Which rows of each global batch of `batch` rows this process feeds, ascending."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch,))
    return np.unique(np.concatenate([np.arange(batch)[place] for place in places.values()]))
