"""Disentangled attention as pure functions of arrays (DeBERTa, section 3; official `disentangled_attention.py`).

    score[i, j] = (q_i . k_j  +  q_i . pos_key[idx(i - j)]  +  k_j . pos_query[idx(i - j)]) / sqrt(H * (1 + terms))
                   c2c           c2p                           p2c

Both position terms use the same index (the official code, not the sign of the paper). They depend on i and j through
i - j alone, so a table row is fetched once per distance and the products are shifted into place: no index array of
scores' size exists.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .layers import dropout

IMPLEMENTATIONS = ("auto", "xla")
_MASKED = -1e30  # below every real score; softmax numerators are zeroed as well, so its size does not matter


def disentangled_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    pos_key: jax.Array | None,
    pos_query: jax.Array | None,
    rows: np.ndarray | None,
    query_segments: jax.Array,
    key_segments: jax.Array,
    query_positions: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention with content-to-content, content-to-position and position-to-content scores.

    Args:
      query: [B, T, N, H].
      key, value: [B, S, N, H].
      pos_key: [P, N, H] keys of the live rows of the relative table, or None without the c2p term.
      pos_query: [P, N, H] queries of the same rows, or None without the p2c term.
      rows: int [2S - 1], row of each distance from S - 1 down to -(S - 1), see `positions.live_rows`; None without
        either term.
      query_segments: int [B, T]; key_segments: int [B, S]. A query sees the keys of its own segment; 0 is padding.
      query_positions: int [B, T], which of the S positions each query stands at; None: query i is at i (T = S).
      dropout_rate, dropout_key: dropout on the probabilities, none without a key.

    Returns:
      Context [B, T, N, H] in value's dtype, exactly zero for padding queries, and the probabilities before dropout,
      float32 [B, N, T, S].
    """
    terms = (pos_key is not None) + (pos_query is not None)
    scale = (query.shape[-1] * (1 + terms)) ** -0.5
    scores = _product("btnh,bsnh->bnts", query * scale, key)
    if pos_key is not None:
        scores += _content_to_position(query * scale, pos_key[rows], query_positions)
    if pos_query is not None:
        scores += _position_to_content(key, pos_query[rows[::-1]] * scale, query_positions)
    visible = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments != 0)[:, None, :]
    probabilities = masked_softmax(scores, visible[:, None])
    dropped = probabilities
    if dropout_key is not None and dropout_rate > 0:
        dropped = dropout(probabilities, rate=dropout_rate, key=dropout_key)
    context = _product("bnts,bsnh->btnh", dropped.astype(value.dtype), value).astype(value.dtype)
    return context, probabilities


def masked_softmax(scores: jax.Array, visible: jax.Array) -> jax.Array:
    """Softmax over the last axis where visible, 0 elsewhere; all 0 where nothing is visible (official XSoftmax)."""
    scores = jnp.where(visible, scores, _MASKED)
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - peak), 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)


def relative_shift(x: jax.Array) -> jax.Array:
    """Moves per-distance columns to per-key columns: out[..., i, j] = x[..., i, S - 1 - i + j].

    Args:
      x: [..., S, 2S - 1], column c of row i belonging to key i - (S - 1) + c.

    Returns:
      [..., S, S]. Row i of the result starts one element earlier than row i - 1, so on the flattened matrix rows of
      2S - 2 elements line up (Transformer-XL's relative shift): a reshape, not a gather.
    """
    *lead, length, width = x.shape
    flat = x.reshape(*lead, length * width)[..., length - 1 : length - 1 + length * (width - 1)]
    return flat.reshape(*lead, length, width - 1)[..., :length]


def _content_to_position(query: jax.Array, table: jax.Array, positions: jax.Array | None) -> jax.Array:
    """query [B, T, N, H] . table [2S - 1, N, H] (distances S - 1 .. -(S - 1)) -> [B, N, T, S]."""
    products = _product("btnh,rnh->bntr", query, table)
    if table.shape[0] == 1:
        return products
    if positions is None:
        return relative_shift(products)
    length = (table.shape[0] + 1) // 2
    columns = length - 1 - positions[:, None, :, None] + jnp.arange(length)
    return jnp.take_along_axis(products, columns, axis=-1)


def _position_to_content(key: jax.Array, table: jax.Array, positions: jax.Array | None) -> jax.Array:
    """key [B, S, N, H] . table [2S - 1, N, H] (distances -(S - 1) .. S - 1) -> [B, N, T, S]."""
    products = _product("bsnh,rnh->bnsr", key, table)
    by_key = products if table.shape[0] == 1 else relative_shift(products)
    scores = by_key.swapaxes(-1, -2)
    if positions is None:
        return scores
    return jnp.take_along_axis(scores, positions[:, None, :, None], axis=-2)


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)
