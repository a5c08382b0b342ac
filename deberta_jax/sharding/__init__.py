"""Sharding: the table of parameters, the mesh, the embedding lookup, and the rows of each host."""

from .table import (
    BATCH_AXES,
    LOGICAL_AXES,
    MESH_AXES,
    batch_devices,
    batch_sharding,
    constrain,
    constrain_batch,
    constrain_features,
    local_rows,
    lookup,
    make_mesh,
    matching_rules,
    partition,
    path_of,
    place_batch,
    shardings,
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
    "local_rows",
    "lookup",
    "make_mesh",
    "matching_rules",
    "partition",
    "path_of",
    "place_batch",
    "shardings",
]
