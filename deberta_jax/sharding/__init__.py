"""Sharding: rules for parameters, the mesh, the embedding look-up on it, and the batches of each host."""

from .embedding_lookup import constrain_features, lookup
from .host_batches import local_batch_indices, place_batch
from .mesh import (
    BATCH_AXES,
    MESH_AXES,
    batch_devices,
    batch_sharding,
    constrain_batch,
    make_mesh,
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
    "batch_devices",
    "batch_sharding",
    "constrain",
    "constrain_batch",
    "constrain_features",
    "local_batch_indices",
    "lookup",
    "make_mesh",
    "matching_rules",
    "named_shardings",
    "parameter_path",
    "partition_spec",
    "place_batch",
]
