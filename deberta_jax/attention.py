"""Disentangled attention as pure functions of arrays (DeBERTa, section 3; official `disentangled_attention.py`).

    score[i, j] = (q_i . k_j  +  q_i . pos_key[idx(i - j)]  +  k_j . pos_query[idx(i - j)]) / sqrt(H * (1 + terms))
                   c2c           c2p                           p2c

Both position terms use the same index (the official code, not the sign of the paper). They depend on i and j through
i - j alone: every product is computed once per row of the table that is in reach, and put into place by an index [S, S]
that all heads and sequences share, or by a shift. No integer array of the scores' size exists.

Two implementations: `xla`, here, and `pallas`, the fused TPU kernel of `kernels/`, which has run in interpret mode and
through the TPU compiler only. `auto` means `pallas` on a TPU, for what the kernel takes, and `xla` elsewhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .errors import UserError
from .kernels import fused_attention, unsupported
from .layers import dropout
from .sharding import BATCH_AXES, LOGICAL_AXES, MESH_AXES

IMPLEMENTATIONS = ("auto", "xla", "pallas")
_MASKED = -1e30  # below every real score: its exponential is exactly 0


def disentangled_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    pos_key: jax.Array | None,
    pos_query: jax.Array | None,
    rows: np.ndarray,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_positions: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Attention with content-to-content, content-to-position and position-to-content scores.

    Args:
      query: [B, T, N, H].
      key, value: [B, S, N, H].
      pos_key: [P, N, H] keys of the live rows of the relative table, or None without the c2p term.
      pos_query: [P, N, H] queries of the same rows, or None without the p2c term.
      rows: int [2S - 1], row of each distance from S - 1 down to -(S - 1), see `positions.live_rows`; not read without
        either term.
      query_segments: int [B, T]; key_segments: int [B, S]. A query sees the keys of its own segment; 0 is padding.
      query_positions: int [B, T], which of the S positions each query stands at; None: query i is at i (T = S).
        Queries at one position must be equal: the kernel computes a position once.
      dropout_rate, dropout_key: dropout on the probabilities, none without a key.
      implementation: `xla`, `pallas`, or `auto`: `pallas` for a TPU if the kernel takes such queries, else `xla`. The
        TPU is that of the mesh in use (`jax.set_mesh`) or JAX's default device. Without a mesh in use the kernel serves
        one device only: JAX refuses to spread it over several. Without a TPU it runs in interpret mode alone, under
        `jax.experimental.pallas.tpu.force_tpu_interpret_mode()`, and JAX refuses it otherwise.

    Returns:
      Context [B, T, N, H] in value's dtype, exactly zero for padding queries, and the probabilities before dropout,
      float32 [B, N, T, S], rows of padding queries zero (official XSoftmax). Beside the kernel they are computed
      apart, and not at all in a compiled program that does not read them.

    Raises:
      ValueError: `pallas` for what the kernel does not take (`kernels.unsupported`), or on a mesh without its axes.
    """
    arguments = {
        "pos_key": pos_key,
        "pos_query": pos_query,
        "rows": rows,
        "query_segments": query_segments,
        "key_segments": key_segments,
        "query_positions": query_positions,
        "dropout_rate": dropout_rate,
        "dropout_key": dropout_key,
    }
    device_kind = _device_kind()
    reason = unsupported(key.shape[1], query.shape[-1], query.dtype, device_kind)
    if implementation == "xla" or (implementation == "auto" and (reason is not None or "TPU" not in device_kind)):
        return _plain_attention(query, key, value, **arguments)
    if reason is not None:
        raise UserError(f"attention_implementation is 'pallas', but {reason}; use 'xla' or 'auto'")
    _, probabilities = _plain_attention(query, key, value, **arguments)
    return _on_mesh(query, key, value, **arguments), probabilities


def _device_kind() -> str:
    """Of the mesh in use, which may be of TPUs that are compiled for ahead of time; else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.device_kind
    default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None or isinstance(default, str):  # a string names a platform
        default = jax.devices(default)[0]
    return default.device_kind


def _on_mesh(query: jax.Array, key: jax.Array, value: jax.Array, **arguments) -> jax.Array:
    """The kernel on each device's sequences and heads; on all of them where they do not divide by an axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:  # in a shard_map of the caller's, the arrays are a device's own
        return _fused(query, key, value, first_row=0, first_head=0, **arguments)
    if mesh.size > 1 and not set(MESH_AXES) & set(mesh.axis_names):
        raise UserError(
            f"the mesh in use has the axes {', '.join(mesh.axis_names)}, and the attention kernel splits its work over "
            f"{', '.join(MESH_AXES)}; name the mesh's axes so, or give attention_implementation 'xla'"
        )
    static = {name: arguments.pop(name) for name in ("rows", "dropout_rate")}
    batch_axes: list[str] = []
    for axis in BATCH_AXES:
        if axis in mesh.shape and query.shape[0] % (mesh.shape[axis] * _size(mesh, batch_axes)) == 0:
            batch_axes.append(axis)
    head_axes = [
        axis for axis in [LOGICAL_AXES["heads"]] if axis in mesh.shape and not query.shape[2] % mesh.shape[axis]
    ]

    def local(query, key, value, arguments):
        first_row, first_head = (
            (jax.lax.axis_index(tuple(axes)) if axes else 0) * size
            for axes, size in ((batch_axes, query.shape[0]), (head_axes, query.shape[2]))
        )
        return _fused(query, key, value, first_row=first_row, first_head=first_head, **static, **arguments)

    tokens = PartitionSpec(tuple(batch_axes), None, tuple(head_axes))
    batch, table = PartitionSpec(tuple(batch_axes)), PartitionSpec(None, tuple(head_axes))
    specs = {
        "pos_key": table,
        "pos_query": table,
        "query_segments": batch,
        "key_segments": batch,
        "query_positions": batch,
        "dropout_key": PartitionSpec(),
    }
    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, {name: specs[name] for name in arguments}),
        out_specs=tokens,
        check_vma=False,
    )(query, key, value, arguments)


def _size(mesh, axes: list[str]) -> int:
    return int(np.prod([mesh.shape[axis] for axis in axes]))


def _fused(query: jax.Array, key: jax.Array, value: jax.Array, *, query_positions: jax.Array | None, **arguments):
    """The kernel, whose query i stands at i: other queries are put at their positions, and read there again."""
    if query_positions is None:
        return fused_attention(query, key, value, device_kind=_device_kind(), **arguments)
    batch = jnp.arange(query.shape[0])[:, None]
    placed = jnp.zeros(key.shape, query.dtype).at[batch, query_positions].set(query)
    segments = arguments.pop("query_segments")
    segments = jnp.zeros(key.shape[:2], segments.dtype).at[batch, query_positions].set(segments)
    context = fused_attention(placed, key, value, query_segments=segments, device_kind=_device_kind(), **arguments)
    return jnp.take_along_axis(context, query_positions[..., None, None], axis=1)


def _plain_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    pos_key: jax.Array | None,
    pos_query: jax.Array | None,
    rows: np.ndarray,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_positions: jax.Array | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`disentangled_attention` in plain XLA."""
    terms = (pos_key is not None) + (pos_query is not None)
    scale = (query.shape[-1] * (1 + terms)) ** -0.5
    query, key, value = (_heads_first(x) for x in (query, key, value))
    # Sums and softmax stand in one expression: XLA compiles products, softmax and the last product into one pass.
    scores = _product("nbth,nbsh->nbts", query, key)
    if pos_key is not None:
        scores += _content_to_position(query, _table_heads_first(pos_key), rows, query_positions)
    if pos_query is not None:
        scores += _position_to_content(key, _table_heads_first(pos_query), rows, query_positions)
    visible = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments != 0)[:, None, :]
    scores = scores * scale + jnp.where(visible, 0.0, _MASKED)[None]
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Divided by their sum after the product with the values, which is smaller. Padding queries see nothing.
    normalizer = (query_segments != 0)[None, :, :, None] / weights.sum(axis=-1, keepdims=True)
    dropped = weights
    if dropout_key is not None and dropout_rate > 0:
        dropped = dropout(weights, rate=dropout_rate, key=dropout_key)
    context = _product("nbts,nbsh->nbth", dropped.astype(value.dtype), value) * normalizer
    return context.astype(value.dtype).transpose(1, 2, 0, 3), (weights * normalizer).swapaxes(0, 1)


def _content_to_position(
    query: jax.Array, table: jax.Array, rows: np.ndarray, positions: jax.Array | None
) -> jax.Array:
    """query [N, B, T, H] . table [N, P, H] -> [N, B, T, S], entry i, j from the row of distance i - j."""
    length = (len(rows) + 1) // 2
    if positions is None:
        return jax.lax.platform_dependent(
            query,
            table,
            tpu=lambda query, table: relative_shift(_per_row(query, table[:, rows])),
            default=lambda query, table: _gather(
                _per_row(query, table), np.arange(length)[:, None] * table.shape[1] + _row_of_pair(rows)
            ),
        )
    row_of_key = jnp.asarray(rows)[length - 1 - positions[..., None] + np.arange(length)]  # [B, T, S]
    return jnp.take_along_axis(_per_row(query, table), row_of_key[None], axis=-1)


def _position_to_content(key: jax.Array, table: jax.Array, rows: np.ndarray, positions: jax.Array | None) -> jax.Array:
    """key [N, B, S, H] . table [N, P, H] -> [N, B, T, S], entry i, j from the row of distance i - j."""
    length = (len(rows) + 1) // 2
    scores = jax.lax.platform_dependent(
        key,
        table,
        tpu=lambda key, table: relative_shift(_per_row(key, table[:, rows[::-1]])).swapaxes(-1, -2),
        default=lambda key, table: _gather(
            _per_row(key, table), np.arange(length)[None, :] * table.shape[1] + _row_of_pair(rows)
        ),
    )
    return scores if positions is None else jnp.take_along_axis(scores, positions[None, ..., None], axis=-2)


def _per_row(x: jax.Array, table: jax.Array) -> jax.Array:
    """x [N, B, S, H] . table [N, P, H] -> [N, B, S, P], one product a head over all sequences."""
    heads, batch, length, size = x.shape
    products = _product("nxh,nph->nxp", x.reshape(heads, batch * length, size), table)
    return products.reshape(heads, batch, length, -1)


def _row_of_pair(rows: np.ndarray) -> np.ndarray:
    """Row of the distance of each query and key: int [S, S]."""
    length = (len(rows) + 1) // 2
    return rows[length - 1 - np.arange(length)[:, None] + np.arange(length)]


def _gather(products: jax.Array, index: np.ndarray) -> jax.Array:
    """products [N, B, S, P] -> [N, B, S, S], by an index [S, S] into the flattened last two axes."""
    heads, batch, *_ = products.shape
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(0, 1), collapsed_slice_dims=(2,), start_index_map=(2,))
    return jax.lax.gather(
        products.reshape(heads, batch, -1),
        jnp.asarray(index[..., None], jnp.int32),
        numbers,
        slice_sizes=(heads, batch, 1),
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def relative_shift(x: jax.Array) -> jax.Array:
    """Moves per-distance columns to per-key columns: out[..., i, j] = x[..., i, S - 1 - i + j].

    Args:
      x: [..., S, 2S - 1], column c of row i belonging to key i - (S - 1) + c.

    Returns:
      [..., S, S]. Row i of the result starts one element earlier than row i - 1, so on the flattened matrix rows of
      2S - 2 elements line up (Transformer-XL's relative shift): a reshape, where a TPU would crawl through a gather.
    """
    *lead, length, width = x.shape
    if length == 1:
        return x
    flat = x.reshape(*lead, length * width)[..., length - 1 : length - 1 + length * (width - 1)]
    return flat.reshape(*lead, length, width - 1)[..., :length]


def _heads_first(x: jax.Array) -> jax.Array:
    """[B, S, N, H] -> [N, B, S, H]."""
    return x.transpose(2, 0, 1, 3)


def _table_heads_first(table: jax.Array) -> jax.Array:
    """[P, N, H] -> [N, P, H]."""
    return table.transpose(1, 0, 2)


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)
