"""One table of rules: parameter path -> logical axes -> mesh axes. Modules know nothing about devices."""

import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ..errors import UserError
from .mesh import mesh_in_use, with_spec

# The mesh axis that each logical axis is split over.
LOGICAL_AXES = {"vocab": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp"}

# The end of a parameter's path -> the logical axis of each of its dimensions. A path matches exactly one rule.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"word_embeddings/(embedding|delta)", ("vocab", "embed")),
    (r"(position|token_type|rel)_embeddings/(embedding|delta)", (None, "embed")),
    (r"mask_embedding/embedding", (None, "embed")),
    (r"embed_proj/kernel", (None, "embed")),
    (r"attention/(query|key|value|pos_key|pos_query)_proj/kernel", ("embed", "heads")),
    (r"attention/(query|key|value|pos_key|pos_query)_proj/bias", ("heads",)),
    (r"attention/output/kernel", ("heads", "embed")),
    (r"attention/(content|position|segment)_bias/bias", (None, None)),
    (r"attention/segment_keys", (None, None, None)),
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
    # Adapters of LoRA: A is split like the inputs of its kernel, B like the outputs.
    (r"(\w+_proj|feed_forward/intermediate)/kernel_lora_a", ("embed", None)),
    (r"attention/output/kernel_lora_a", ("heads", None)),
    (r"feed_forward/output/kernel_lora_a", ("mlp", None)),
    (r"\w+_proj/kernel_lora_b", (None, "heads")),
    (r"feed_forward/intermediate/kernel_lora_b", (None, "mlp")),
    (r"(attention|feed_forward)/output/kernel_lora_b", (None, "embed")),
    (r"(dense|(span_)?classifier|token_proj|embed_proj)/bias", (None,)),
)

# A TPU stores the last two dimensions of a float32 array in tiles of this size and pads incomplete tiles.
_TILE = (8, 128)


def matching_rules(path: str) -> list[int]:
    """Returns the indices of the rules that a parameter path matches: exactly one for parameters of this library."""
    return [number for number, (pattern, _) in enumerate(RULES) if re.search(rf"(^|/){pattern}$", path)]


def parameter_path(key_path: tuple[Any, ...]) -> str:
    """Returns a JAX key path as names joined by slashes, such as "deberta/encoder/layer_0/attention/output/kernel"."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in key_path)


def named_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every array in a tree of parameters, or in a training state that holds such trees.

    Everything below a state's `opt_state` belongs to an optimizer. The paths of its moments end like those of their
    parameters, so the same rules match them; they are split over the axis `zero` as well. Scalars and random keys,
    which no rule matches, are replicated.

    Args:
      tree: Arrays, or `jax.ShapeDtypeStruct`s.
      mesh: The mesh to shard over; it need not have all of our axes.

    Returns:
      The tree with a `NamedSharding` in place of each array.

    Raises:
      UserError: A dimension is not divisible by its mesh axis.
      ValueError: No rule matches an array of two or more dimensions.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = parameter_path(key_path)
        return NamedSharding(mesh, partition_spec(path, leaf.shape, mesh, moment=path.startswith("opt_state/")))

    return jax.tree.map_with_path(sharding, tree)


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, *, moment: bool) -> PartitionSpec:
    """Returns how a parameter is split over a mesh.

    Args:
      path: Path of the parameter, or any path that ends in it.
      shape: Shape of the parameter.
      mesh: The mesh to shard over; it need not have all of our axes.
      moment: Whether the array is a moment, a gradient or an update of the parameter. Matrices are then split over
        `zero` as well, if one of their dimensions divides; vectors are not, as they are too small to matter.

    Raises:
      UserError: A dimension is not divisible by its mesh axis.
      ValueError: No rule matches an array of two or more dimensions.
    """
    rules = matching_rules(path)
    if not rules:
        if len(shape) <= 1:
            return PartitionSpec()
        raise ValueError(f"no sharding rule matches {path} of shape {shape}")
    _, logical_axes = RULES[rules[0]]
    mesh_axes = [LOGICAL_AXES.get(axis or "") for axis in logical_axes]
    spec: list[Any] = [axis if axis in mesh.shape else None for axis in mesh_axes]
    for size, axis in zip(shape, spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise UserError(
                f"{path} has a dimension of {size}, which is not divisible by the mesh axis {axis} of size "
                f"{mesh.shape[axis]}; choose a smaller {axis} axis"
            )
    zero = mesh.shape.get("zero", 1)
    if moment and zero > 1 and len(shape) > 1:
        shards = [mesh.shape[axis] if axis else 1 for axis in spec]
        dimension = _zero_dimension(shape, shards, zero)
        if dimension is not None:
            spec[dimension] = (spec[dimension], "zero") if shards[dimension] > 1 else "zero"
    return PartitionSpec(*spec)


def _zero_dimension(shape: tuple[int, ...], shards: list[int], zero: int) -> int | None:
    """Returns the dimension that `zero` splits, given the shards of each dimension so far; None if none divides.

    Splitting saves memory only if a shard is made of whole tiles: a TPU pads 32,025 rows to 32,032 and 64 features to
    128, and then spends time on the padding in every update. So the order of preference is
      1. a dimension whose shards are whole tiles,
      2. a dimension that no other axis splits, so that the collectives over `zero` and over that axis stay apart,
      3. the first dimension, whose shards are contiguous in memory.
    """
    tiles = dict(zip(range(len(shape))[-2:], _TILE, strict=True))

    def rank(dimension: int) -> tuple[bool, bool, int]:
        shard_size = shape[dimension] // (shards[dimension] * zero)
        needs_padding = shard_size % tiles.get(dimension, 1) != 0
        return needs_padding, shards[dimension] > 1, dimension

    divisible = [number for number, size in enumerate(shape) if size % (shards[number] * zero) == 0]
    return min(divisible, key=rank, default=None)


def constrain(tree: Any, *, moments: bool) -> Any:
    """Shards a tree by the table, inside or outside of jit. Returns it unchanged without a mesh of ours.

    Args:
      tree: Parameters, or gradients or updates of them.
      moments: Shard the arrays as moments, which are split over `zero` as well, instead of as parameters.

    Raises:
      UserError: A dimension is not divisible by its mesh axis.
      ValueError: No rule matches an array of two or more dimensions.
    """
    mesh = mesh_in_use()
    if mesh is None:
        return tree

    def place(key_path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return with_spec(leaf, partition_spec(parameter_path(key_path), leaf.shape, mesh, moment=moments))

    return jax.tree.map_with_path(place, tree)
