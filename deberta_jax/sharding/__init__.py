"""Sharding: rules for parameters, the mesh, the embedding look-up on it, and the batches of each host."""

from .embedding_lookup import constrain_features, lookup, sum_over_batch
from .host_batches import local_batch_indices, place_batch
from .mesh import (
    BATCH_AXES,
    MESH_AXES,
    batch_axes,
    batch_devices,
    batch_sharding,
    compiler_options,
    constrain_batch,
    current_device_kind,
    is_gpu,
    make_mesh,
    mesh_in_use,
    with_spec,
)
from .table import (
    LOGICAL_AXES,
    constrain,
    matching_rules,
    named_shardings,
    parameter_path,
    partition_spec,
)

__all__ = [
    "BATCH_AXES",
    "LOGICAL_AXES",
    "MESH_AXES",
    "batch_axes",
    "batch_devices",
    "batch_sharding",
    "compiler_options",
    "constrain",
    "constrain_batch",
    "constrain_features",
    "current_device_kind",
    "is_gpu",
    "local_batch_indices",
    "lookup",
    "make_mesh",
    "matching_rules",
    "mesh_in_use",
    "named_shardings",
    "parameter_path",
    "partition_spec",
    "place_batch",
    "sum_over_batch",
    "with_spec",
]
