"""Fused disentangled attention as a differentiable function: layout, padding, tables by distance, the kernels' VJP."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .backward import backward
from .forward import forward
from .forward_128 import forward_short
from .scores import segment_codes
from .tiles import LANES, Plan

HEAD_SIZES = (32, 64, 128)  # what the kernels divide 128 lanes into; other sizes are padded
_MAX_BLOCKS = 4  # a tile is at most 512 x 512: a larger one gains nothing and its program grows with its area
_V4_LENGTH = 2048  # in bfloat16: v4 has 16 MiB of VMEM, where the tables of a longer sequence leave no room


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    pos_key: jax.Array | None,
    pos_query: jax.Array | None,
    rows: np.ndarray,
    query_segments: jax.Array,
    key_segments: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    first_row: jax.Array | int = 0,
    first_head: jax.Array | int = 0,
    device_kind: str = "TPU v5 lite",
) -> jax.Array:
    """The context of `attention.disentangled_attention`, query i standing at position i, without its probabilities.

    Args:
      query, key, value: [B, S, N, H]; see `unsupported`.
      pos_key, pos_query: [P, N, H] or None; rows: int [2S - 1]; query_segments, key_segments: int [B, S].
      dropout_rate, dropout_key: none without a key. The mask depends on the key and on sequence, head, query and key.
      first_row, first_head: how many sequences and heads stand before these on the mesh, for the dropout mask.
      device_kind: of the TPU that will run it, as JAX names it; of anything else, for TPU interpret mode.

    Returns:
      [B, S, N, H] in query's dtype, exactly zero for padding queries.
    """
    batch, length, heads, size = query.shape
    chunk, chunks = tiling(length, query.dtype, device_kind)
    rate = dropout_rate if dropout_key is not None else 0.0
    plan = Plan(
        chunk=chunk,
        chunks=chunks,
        head_size=next(allowed for allowed in HEAD_SIZES if allowed >= size),
        scale=(size * (1 + (pos_key is not None) + (pos_query is not None))) ** -0.5,
        c2p=pos_key is not None,
        p2c=pos_query is not None,
        dropout_rate=rate,
        packed=query.dtype == jnp.bfloat16,
        strided_roll="v4" not in device_kind,
        pack_instruction="TPU" in device_kind,
    )

    def flat(x: jax.Array, length: int | None = None) -> jax.Array:
        """[..., N, H] -> [..., W]; pads heads to fill 128 lanes, head size and length to what the kernels take."""
        grow = [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % plan.heads), (0, plan.head_size - size)]
        if length is not None:
            grow[1] = (0, length - x.shape[1])
        x = jnp.pad(x, grow) if any(after for _, after in grow) else x
        return x.reshape(*x.shape[:-2], -1)

    def segments(x: jax.Array, padding: int) -> jax.Array:
        x = jnp.pad(x.astype(jnp.int32), ((0, 0), (0, plan.length - length)))
        return jnp.where(x == 0, padding, x)[:, None]

    seed = jnp.zeros((), jnp.uint32) if dropout_key is None else jax.random.bits(dropout_key, (), jnp.uint32)
    seed = jax.lax.bitcast_convert_type(seed, jnp.int32)
    integers: dict[str, Any] = {
        "scalars": jnp.stack([seed, jnp.asarray(first_row, jnp.int32), jnp.asarray(first_head, jnp.int32)]),
        "query_segments": segments(query_segments, 0),
        "key_segments": segments(key_segments, -1),
        "rows": rows_by_offset(rows, plan.length) if plan.c2p or plan.p2c else None,
    }
    arrays: dict[str, Any] = {
        name: flat(x, plan.length) for name, x in (("query", query), ("key", key), ("value", value))
    }
    arrays["pos_key"] = None if pos_key is None else flat(pos_key)
    arrays["pos_query"] = None if pos_query is None else flat(pos_query)
    context: Any = _attention(plan, integers, arrays)
    return context[:, :length].reshape(batch, length, -1, plan.head_size)[:, :, :heads, :size]


def unsupported(length: int, head_size: int, dtype: Any, device_kind: str) -> str | None:
    """Why the kernel cannot serve such queries on such a device; None: it can."""
    if head_size > HEAD_SIZES[-1]:
        return f"the head size is {head_size} and the kernel takes at most {HEAD_SIZES[-1]}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype is {jnp.dtype(dtype)} and the kernel takes float32 or bfloat16"
    longest = _V4_LENGTH if dtype == jnp.bfloat16 else _V4_LENGTH // 2
    if "v4" in device_kind and length > longest:
        return f"there are {length} tokens and on TPU v4 the kernel takes at most {longest} of this dtype"
    return None


def tiling(length: int, dtype: Any, device_kind: str) -> tuple[int, int]:
    """(chunk, chunks) of a sequence length: as few tiles as will do, as small as they can be."""
    narrow = "v4" in device_kind and (length > _V4_LENGTH // 2 or dtype == jnp.float32)  # its VMEM holds less
    blocks = -(-length // LANES)
    chunks = -(-blocks // (_MAX_BLOCKS // 2 if narrow else _MAX_BLOCKS))
    return -(-blocks // chunks) * LANES, chunks


def rows_by_offset(rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of the relative table for the distances S - t (c2p) and t - S (p2c), t from 0 to 2S - 1.

    Args:
      rows: int [2L - 1], row of each distance from L - 1 down to -(L - 1), see `positions.live_rows`.
      length: S, at least L. Distances that no two tokens have repeat the last row, and are never read.
    """
    middle, last = (len(rows) - 1) // 2, len(rows) - 1
    distance = length - np.arange(2 * length)
    return rows[np.clip(middle - distance, 0, last)], rows[np.clip(middle + distance, 0, last)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, integers: dict, arrays: dict) -> jax.Array:
    return _attention_forward(plan, integers, arrays)[0]


def _attention_forward(plan: Plan, integers: dict, arrays: dict) -> tuple[jax.Array, tuple]:
    inputs = _inputs(plan, integers, arrays)
    if plan.length == LANES:
        context, lse = forward_short(plan, integers["scalars"], inputs)
    else:
        context, lse = forward(plan, integers["scalars"], _ranges(plan, integers), inputs)
    return context, (integers, arrays, context, lse)


def _attention_backward(plan: Plan, residuals: tuple, d_context: jax.Array) -> tuple[None, dict]:
    integers, arrays, context, lse = residuals
    inputs = _inputs(plan, integers, arrays) | {"context": context, "d_context": d_context, "lse": lse}
    d_query, d_key, d_value, d_key_table, d_query_table = backward(
        plan, integers["scalars"], _ranges(plan, integers), inputs
    )

    def per_row(gradient: jax.Array | None, table: jax.Array | None, index: int) -> jax.Array | None:
        """[W, 2S], by offset and unscaled -> [P, W], summed in float32 over the distances that share a row."""
        if gradient is None or table is None:
            return None
        one_hot = jax.nn.one_hot(integers["rows"][index], table.shape[0], dtype=jnp.float32)
        summed = jnp.einsum("tp,wt->pw", one_hot, gradient, precision=jax.lax.Precision.HIGHEST)
        return (summed * plan.scale).astype(table.dtype)

    return None, {
        "query": d_query,
        "key": d_key,
        "value": d_value,
        "pos_key": per_row(d_key_table, arrays["pos_key"], 0),
        "pos_query": per_row(d_query_table, arrays["pos_query"], 1),
    }


_attention.defvjp(_attention_forward, _attention_backward)


def _inputs(plan: Plan, integers: dict, arrays: dict) -> dict:
    inputs: dict[str, Any] = {name: arrays[name] for name in ("query", "key", "value")}
    inputs |= {name: integers[name] for name in ("query_segments", "key_segments")}
    inputs |= dict.fromkeys(("query_code", "key_code"))
    if plan.heads > 1:
        codes = segment_codes(integers["query_segments"], integers["key_segments"], arrays["query"].dtype)
        inputs["query_code"], inputs["key_code"] = codes
    inputs["key_table"] = arrays["pos_key"][integers["rows"][0]] if plan.c2p else None
    inputs["query_table"] = arrays["pos_query"][integers["rows"][1]] if plan.p2c else None
    return inputs


def _ranges(plan: Plan, integers: dict) -> tuple[jax.Array, jax.Array]:
    """Lowest and highest segment of each chunk, int32 [B * chunks]: two chunks whose ranges do not meet are skipped."""
    segments = integers["query_segments"].reshape(-1, plan.chunk)
    none = jnp.iinfo(jnp.int32).max
    return jnp.where(segments == 0, none, segments).min(axis=1), segments.max(axis=1)
