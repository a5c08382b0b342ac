"""Disentangled attention as pure functions of arrays (DeBERTa, section 3; official `disentangled_attention.py`).

    score[i, j] = (q_i . k_j  +  q_i . pos_key[row(i - j)]  +  k_j . pos_query[row(i - j)]) / sqrt(H * (1 + terms))
                   c2c           c2p                           p2c

Both position terms use the same index (the official code, not the sign of the paper).

There are two implementations: `xla` (`xla_attention.py`), and `pallas`, fused kernels: those of `kernels/` on a TPU,
those of `gpu_kernels/` on an NVIDIA GPU. Those for TPUs have run in interpret mode and through the compilers only.
`auto` uses `pallas` where the kernels support the device and the call, and `xla` elsewhere. None keeps scores for the
backward pass, and only the TPU kernels can keep the probabilities, on request: see `keep_probabilities`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from . import kernels
from .attention_inputs import AttentionInputs
from .errors import UserError
from .sharding import BATCH_AXES, LOGICAL_AXES, MESH_AXES, current_device_kind, is_gpu
from .xla_attention import attention_context, attention_probabilities, block_sizes

__all__ = ["IMPLEMENTATIONS", "AttentionInputs", "AttentionOutput", "disentangled_attention"]

IMPLEMENTATIONS = ("auto", "xla", "pallas")


class AttentionOutput(NamedTuple):
    """Result of attention.

    Attributes:
      context: in value's dtype, exactly zero for padding queries.
      probabilities: float32, before dropout; zero for padding queries (official XSoftmax).
    """

    context: Float[Array, "B T N H"]
    probabilities: Float[Array, "B N T S"]


def disentangled_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    *,
    implementation: str = "auto",
    keep_probabilities: bool = False,
) -> AttentionOutput:
    """Attention with content-to-content, content-to-position and position-to-content scores.

    Without a mesh (`jax.set_mesh`) the kernels are for one device only: JAX refuses to partition those for TPUs, and
    every GPU would compute the whole batch. Without a TPU or a GPU they run only under
    `jax.experimental.pallas.tpu.force_tpu_interpret_mode()`.

    Args:
      query: projected queries.
      key: projected keys.
      value: projected values.
      inputs: segments, position terms and dropout.
      implementation: `xla`, `pallas`, or `auto`: `pallas` if the device is a TPU or a GPU and its kernels support the
        call, else `xla`. The device is that of the current mesh, else JAX's default device. Of several GPUs without a
        mesh, `auto` takes `xla`, because XLA may split the work among them.
      keep_probabilities: where the call has gradients, the forward TPU kernel writes the probabilities, [B, N, S, S] in
        query's dtype, and the backward kernel reads them instead of computing them again. Ignored where the kernels
        cannot (`kernels.kept_bytes` is 0), as for more than 512 tokens, and by the other implementations.

    Returns:
      Context and probabilities, which are computed separately; a compiled program that does not read the probabilities
      does not compute them.

    Raises:
      UserError: `pallas` for a call that the kernels do not support (`kernels.unsupported`), or on a mesh none of
        whose axes has a name that the library knows.
    """
    device_kind = current_device_kind()
    reason = _unsupported(query, key, device_kind)
    probabilities = attention_probabilities(query, key, inputs)
    auto_is_xla = reason is not None or not _prefers_kernels(device_kind)
    if implementation == "xla" or (implementation == "auto" and auto_is_xla):
        return AttentionOutput(_xla_on_mesh(query, key, value, inputs), probabilities)
    if reason is not None:
        raise UserError(f"attention_implementation is 'pallas', but {reason}; use 'xla' or 'auto'")
    return AttentionOutput(_fused_on_mesh(query, key, value, inputs, keep_probabilities), probabilities)


def _unsupported(query: Float[Array, "B T N H"], key: Float[Array, "B S N H"], device_kind: str) -> str | None:
    """Returns why the kernels of a device cannot run a call, or None if they can."""
    length, size = key.shape[1], query.shape[-1]
    if is_symbolic_dim(length):
        return "the length is a variable of jax.export and the kernel is made for one length"
    if is_gpu(device_kind):
        from . import gpu_kernels  # importing Mosaic takes a fifth of a second

        if any(map(is_symbolic_dim, query.shape)):
            return "the batch is a variable of jax.export and the kernel is made for one batch"
        return gpu_kernels.unsupported(size, query.dtype, device_kind)
    return kernels.unsupported(length, size, query.dtype, device_kind)


def _prefers_kernels(device_kind: str) -> bool:
    """Returns whether `auto` uses the kernels of a device for the calls that they support."""
    is_split_by_xla = jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1
    return "TPU" in device_kind or (is_gpu(device_kind) and not is_split_by_xla)


# ---------------------------------------------------------------- on each device


class _Local(NamedTuple):
    """Where the sequences and heads of one device are among those of the mesh.

    Attributes:
      first_sequence, first_head: their first numbers, which the dropout mask depends on, so that it is the same on any
        mesh.
      sequences: number of sequences of the mesh.
    """

    first_sequence: Int[Array, ""] | int
    first_head: Int[Array, ""] | int
    sequences: int


def _fused_on_mesh(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    keep_probabilities: bool,
) -> Float[Array, "B T N H"]:
    """Runs the kernels on each device's sequences and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if is_gpu(current_device_kind()):
        attend = _fused_on_gpu
    else:
        attend = functools.partial(_fused, keep_probabilities=keep_probabilities)
    if mesh.empty or mesh.are_all_axes_manual:  # inside the caller's shard_map the arrays are one device's shards
        return attend(query, key, value, inputs, _Local(0, 0, query.shape[0]))
    if mesh.size > 1 and not set(MESH_AXES) & set(mesh.axis_names):
        raise UserError(
            f"the current mesh has the axes {', '.join(mesh.axis_names)}, but the attention kernel splits its work "
            f"over {', '.join(MESH_AXES)}; rename the axes of the mesh, or set attention_implementation to 'xla'"
        )
    return _on_each_device(attend, query, key, value, inputs)


def _xla_on_mesh(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
) -> Float[Array, "B T N H"]:
    """Runs the blocks of each device's sequences and heads; a mesh of other axes is left to XLA's partitioner."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or not set(MESH_AXES) & set(mesh.axis_names):
        return _xla(query, key, value, inputs, _Local(0, 0, query.shape[0]))
    return _on_each_device(_xla, query, key, value, inputs)


def _on_each_device(
    attend: Callable[..., Float[Array, "B T N H"]],
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
) -> Float[Array, "B T N H"]:
    """Calls `attend` on each device's sequences and heads; an axis that does not divide them is not used."""
    mesh, sequences = jax.sharding.get_abstract_mesh(), query.shape[0]
    batch_axes = _dividing_axes(mesh, BATCH_AXES, sequences)
    head_axes = _dividing_axes(mesh, (LOGICAL_AXES["heads"],), query.shape[2])

    def local(query: jax.Array, key: jax.Array, value: jax.Array, inputs: AttentionInputs) -> jax.Array:
        first_sequence, first_head = (
            (jax.lax.axis_index(axes) if axes else 0) * size
            for axes, size in ((batch_axes, query.shape[0]), (head_axes, query.shape[2]))
        )
        return attend(query, key, value, inputs, _Local(first_sequence, first_head, sequences))

    tokens = PartitionSpec(batch_axes, None, head_axes)
    batch, table = PartitionSpec(batch_axes), PartitionSpec(None, head_axes)
    specs: Any = inputs.replace(  # type: ignore[attr-defined]
        query_segments=batch,
        key_segments=batch,
        pos_key=table,
        pos_query=table,
        query_positions=batch,
        dropout_key=PartitionSpec(),
    )
    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, specs),
        out_specs=tokens,
        check_vma=False,
    )(query, key, value, inputs)


def _dividing_axes(mesh: AbstractMesh, names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Returns those of the mesh axes over which `count` sequences or heads can be split evenly."""
    axes, size = [], 1
    for name in names:
        if name in mesh.shape and count % (size * mesh.shape[name]) == 0:
            axes.append(name)
            size *= mesh.shape[name]
    return tuple(axes)


def _xla(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    local: _Local,
) -> Float[Array, "B T N H"]:
    sequences, queries, heads, _ = query.shape
    sizes = block_sizes(heads, sequences, queries, key.shape[1], current_device_kind())
    return attention_context(
        query,
        key,
        value,
        inputs,
        sizes=sizes,
        first_sequence=local.first_sequence,
        first_head=local.first_head,
        sequences=local.sequences,
    )


def _fused_on_gpu(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    local: _Local,
) -> Float[Array, "B T N H"]:
    from . import gpu_kernels

    return gpu_kernels.gpu_attention(query, key, value, inputs, **local._asdict())


def _fused(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    local: _Local,
    *,
    keep_probabilities: bool,
) -> Float[Array, "B T N H"]:
    """Calls the kernels, which expect query i at position i: scatters other queries to their positions and back.

    Scatter and gather move whole tokens [N * H]: a TPU pads each head of 64 to 128 lanes, and copies to undo it.
    """
    call = functools.partial(
        kernels.fused_attention,
        first_sequence=local.first_sequence,
        first_head=local.first_head,
        device_kind=current_device_kind(),
        keep_probabilities=keep_probabilities,
    )
    positions = inputs.query_positions
    if positions is None:
        return call(query, key, value, inputs)
    tokens, batch = (*key.shape[:2], key.shape[2] * key.shape[3]), jnp.arange(query.shape[0])[:, None]
    queries = query.reshape(*query.shape[:2], -1)
    scattered = jnp.zeros(tokens, query.dtype).at[batch, positions].set(queries).reshape(key.shape)
    segments = jnp.zeros(key.shape[:2], inputs.query_segments.dtype).at[batch, positions].set(inputs.query_segments)
    inputs = inputs.replace(query_segments=segments, query_positions=None)  # type: ignore[attr-defined]
    context = call(scattered, key, value, inputs).reshape(tokens)
    return jnp.take_along_axis(context, positions[..., None], axis=1).reshape(query.shape)
