"""Disentangled attention as pure functions of arrays (DeBERTa, section 3; official `disentangled_attention.py`).

    score[i, j] = (q_i . k_j  +  q_i . pos_key[row(i - j)]  +  k_j . pos_query[row(i - j)]) / sqrt(H * (1 + terms))
                   c2c           c2p                           p2c

Both position terms use the same index (the official code, not the sign of the paper). They depend on i and j through
i - j alone. So every product is computed once per reachable row of the table, and then moved to its place: by a gather
with an index [S, S] that all heads and sequences share, or by a shift. No integer array has the size of the scores.

There are two implementations: `xla`, in this file, and `pallas`, the fused TPU kernels of `kernels/`, which have run in
interpret mode and through the TPU compiler only. `auto` uses `pallas` on a TPU where the kernels support the call, and
`xla` elsewhere.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from .attention_inputs import AttentionInputs
from .errors import UserError
from .kernels import fused_attention, unsupported
from .positions import LiveRows, SymbolicRows
from .random import dropout
from .sharding import BATCH_AXES, LOGICAL_AXES, MESH_AXES

__all__ = ["IMPLEMENTATIONS", "AttentionInputs", "AttentionOutput", "disentangled_attention", "relative_shift"]

IMPLEMENTATIONS = ("auto", "xla", "pallas")
_MASKED = -1e30  # below every real score: its exponential is exactly 0


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
) -> AttentionOutput:
    """Attention with content-to-content, content-to-position and position-to-content scores.

    Without a mesh (`jax.set_mesh`) the kernels run on one device only: JAX refuses to partition them. Without a TPU
    they run only under `jax.experimental.pallas.tpu.force_tpu_interpret_mode()`.

    Args:
      query: projected queries.
      key: projected keys.
      value: projected values.
      inputs: segments, position terms and dropout.
      implementation: `xla`, `pallas`, or `auto`: `pallas` if the device is a TPU and the kernels support the call, else
        `xla`. The device is that of the current mesh, else JAX's default device.

    Returns:
      Context and probabilities. With `pallas` the probabilities are computed separately from the context; a compiled
      program that does not read them does not compute them.

    Raises:
      UserError: `pallas` for a call that the kernels do not support (`kernels.unsupported`), or on a mesh none of
        whose axes has a name that the library knows.
    """
    device_kind = _device_kind()
    reason = (
        "the length is a variable of jax.export and the kernel is made for one length"
        if is_symbolic_dim(key.shape[1])
        else unsupported(key.shape[1], query.shape[-1], query.dtype, device_kind)
    )
    if implementation == "xla" or (implementation == "auto" and (reason is not None or "TPU" not in device_kind)):
        return _plain_attention(query, key, value, inputs)
    if reason is not None:
        raise UserError(f"attention_implementation is 'pallas', but {reason}; use 'xla' or 'auto'")
    probabilities = _plain_attention(query, key, value, inputs).probabilities
    return AttentionOutput(_fused_on_mesh(query, key, value, inputs), probabilities)


def _device_kind() -> str:
    """Returns the device kind of the current mesh, else of the default device.

    A mesh without devices, as for a compilation ahead of time, has a device kind, too.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.device_kind
    default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None or isinstance(default, str):  # a string names a platform
        default = jax.devices(default)[0]
    return default.device_kind


# ---------------------------------------------------------------- the fused kernels


def _fused_on_mesh(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
) -> Float[Array, "B T N H"]:
    """Runs the kernels on each device's sequences and heads; an axis that does not divide them is not used."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:  # inside the caller's shard_map the arrays are one device's shards
        return _fused(query, key, value, inputs, first_sequence=0, first_head=0)
    if mesh.size > 1 and not set(MESH_AXES) & set(mesh.axis_names):
        raise UserError(
            f"the current mesh has the axes {', '.join(mesh.axis_names)}, but the attention kernel splits its work "
            f"over {', '.join(MESH_AXES)}; rename the axes of the mesh, or set attention_implementation to 'xla'"
        )
    batch_axes = _dividing_axes(mesh, BATCH_AXES, query.shape[0])
    head_axes = _dividing_axes(mesh, (LOGICAL_AXES["heads"],), query.shape[2])

    def local(query: jax.Array, key: jax.Array, value: jax.Array, inputs: AttentionInputs) -> jax.Array:
        # The dropout mask depends on the global numbers of sequence and head, so that it is the same on any mesh.
        first_sequence, first_head = (
            (jax.lax.axis_index(axes) if axes else 0) * size
            for axes, size in ((batch_axes, query.shape[0]), (head_axes, query.shape[2]))
        )
        return _fused(query, key, value, inputs, first_sequence=first_sequence, first_head=first_head)

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


def _fused(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    *,
    first_sequence: Int[Array, ""] | int,
    first_head: Int[Array, ""] | int,
) -> Float[Array, "B T N H"]:
    """Calls the kernels, which expect query i at position i: scatters other queries to their positions and back."""
    call = functools.partial(
        fused_attention, first_sequence=first_sequence, first_head=first_head, device_kind=_device_kind()
    )
    positions = inputs.query_positions
    if positions is None:
        return call(query, key, value, inputs)
    batch = jnp.arange(query.shape[0])[:, None]
    scattered = jnp.zeros(key.shape, query.dtype).at[batch, positions].set(query)
    segments = jnp.zeros(key.shape[:2], inputs.query_segments.dtype).at[batch, positions].set(inputs.query_segments)
    inputs = inputs.replace(query_segments=segments, query_positions=None)  # type: ignore[attr-defined]
    context = call(scattered, key, value, inputs)
    return jnp.take_along_axis(context, positions[..., None, None], axis=1)


# ---------------------------------------------------------------- plain XLA


def _plain_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
) -> AttentionOutput:
    """`disentangled_attention` in plain XLA."""
    scale = (query.shape[-1] * (1 + inputs.position_terms)) ** -0.5
    query, key, value = (_heads_first(x) for x in (query, key, value))
    # Sums and softmax are one expression: XLA then compiles products, softmax and the last product into one pass.
    scores = _product("nbth,nbsh->nbts", query, key)
    if inputs.position_terms:
        assert inputs.live_rows is not None, "live_rows are needed with pos_key or pos_query"
        live, positions = inputs.live_rows, inputs.query_positions
        if inputs.pos_key is not None:
            scores += _content_to_position(query, _table_heads_first(inputs.pos_key), live, positions)
        if inputs.pos_query is not None:
            scores += _position_to_content(key, _table_heads_first(inputs.pos_query), live, positions)
    query_segments, key_segments = inputs.query_segments, inputs.key_segments
    visible = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments != 0)[:, None, :]
    scores = scores * scale + jnp.where(visible, 0.0, _MASKED)[None]
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # The division by the sum follows the product with the values, which is smaller. Padding queries see nothing.
    normalizer = (query_segments != 0)[None, :, :, None] / weights.sum(axis=-1, keepdims=True)
    dropped = weights
    if inputs.dropout_key is not None and inputs.dropout_rate > 0:
        dropped = dropout(weights, rate=inputs.dropout_rate, key=inputs.dropout_key)
    context = _product("nbts,nbsh->nbth", dropped.astype(value.dtype), value) * normalizer
    return AttentionOutput(context.astype(value.dtype).transpose(1, 2, 0, 3), (weights * normalizer).swapaxes(0, 1))


def _content_to_position(
    query: Float[Array, "N B T H"],
    table: Float[Array, "N P H"],
    live: LiveRows | SymbolicRows,
    positions: Int[Array | np.ndarray, "B T"] | None,
) -> Float[Array, "N B T S"]:
    """Products of each query with the table; entry i, j is that of the row of distance i - j."""
    if positions is None:
        # A TPU reshapes quickly and gathers slowly, so there every distance gets a product of its own.
        return jax.lax.platform_dependent(
            query,
            table,
            tpu=lambda query, table: relative_shift(_per_row(query, table[:, live.c2p_columns])),
            default=lambda query, table: _gather(
                _per_row(query, table), live.positions[:, None] * table.shape[1] + live.row_of_pair()
            ),
        )
    row_of_key = live.rows_of(jnp.asarray(positions)[..., None] - live.positions)  # [B, T, S]
    return jnp.take_along_axis(_per_row(query, table), row_of_key[None], axis=-1)


def _position_to_content(
    key: Float[Array, "N B S H"],
    table: Float[Array, "N P H"],
    live: LiveRows | SymbolicRows,
    positions: Int[Array | np.ndarray, "B T"] | None,
) -> Float[Array, "N B T S"]:
    """Products of each key with the table; entry i, j is that of the row of distance i - j."""
    # The rows of the shifted matrix are keys, whose distance to the queries grows the other way: the order is reversed.
    scores = jax.lax.platform_dependent(
        key,
        table,
        tpu=lambda key, table: relative_shift(_per_row(key, table[:, live.p2c_columns])).swapaxes(-1, -2),
        default=lambda key, table: _gather(
            _per_row(key, table), live.positions[None, :] * table.shape[1] + live.row_of_pair()
        ),
    )
    return scores if positions is None else jnp.take_along_axis(scores, positions[None, ..., None], axis=-2)


def _per_row(x: Float[Array, "N B S H"], table: Float[Array, "N P H"]) -> Float[Array, "N B S P"]:
    """Products of every token with every row of the table: one matrix product per head over all sequences."""
    heads, batch, length, size = x.shape
    products = _product("nxh,nph->nxp", x.reshape(heads, batch * length, size), table)
    return products.reshape(heads, batch, length, -1)


def _gather(products: Float[Array, "N B S P"], index: Int[Array | np.ndarray, "S S"]) -> Float[Array, "N B S S"]:
    """Reads the flattened last two axes at an index that all heads and sequences share."""
    heads, batch, *_ = products.shape
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(0, 1), collapsed_slice_dims=(2,), start_index_map=(2,))
    return jax.lax.gather(
        products.reshape(heads, batch, -1),
        jnp.asarray(index[..., None], jnp.int32),
        numbers,
        slice_sizes=(heads, batch, 1),
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def relative_shift(x: Shaped[Array, "*lead S distances"]) -> Shaped[Array, "*lead S S"]:
    """Moves columns by distance to columns by position: out[..., i, j] = x[..., i, S - 1 - i + j].

    This is Transformer-XL's relative shift. Row i of the result starts one element earlier than row i - 1, so in the
    flattened matrix, rows of 2S - 2 elements line up: the shift is a reshape. A gather would be slow on a TPU.

    Args:
      x: [..., S, 2S - 1]; column c of row i belongs to position i - (S - 1) + c: a key for c2p, a query for p2c. More
        columns are dropped.
    """
    *lead, length, width = x.shape
    if width == 1:
        return x
    flat = x.reshape(*lead, length * width)[..., length - 1 : length - 1 + length * (width - 1)]
    return flat.reshape(*lead, length, width - 1)[..., :length]


def _heads_first(x: Float[Array, "B S N H"]) -> Float[Array, "N B S H"]:
    return x.transpose(2, 0, 1, 3)


def _table_heads_first(table: Float[Array, "P N H"]) -> Float[Array, "N P H"]:
    return table.transpose(1, 0, 2)


def _product(spec: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)
