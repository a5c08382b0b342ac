"""Position terms of the scores on a GPU: products for each distance, shifted to their pairs of query and key.

Tokens are taken in blocks. The L keys and the queries of a block have one distance more than there are tokens in both
together: the products of a block are hardly larger than its scores, and a shift moves them to their pairs, which XLA
compiles into reads of neighbors. A gather by keys, whose result must be transposed, took four times as long on an H200,
and its transpose is a scatter. The gradients are shifted back and multiplied with the same rows of the table.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..position_scores import relative_shift
from ..positions import LiveRows
from .tile import BLOCK

_BLOCKS = 8  # at most, if the length allows it: each has a copy of its rows of the table


class Terms(NamedTuple):
    """What the position terms are computed from; a table is None without its term. L is a multiple of 64."""

    query: Float[Array, "N B L H"]
    key: Float[Array, "N B L H"]
    pos_key: Float[Array, "N P H"] | None
    pos_query: Float[Array, "N P H"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def position_terms(live: LiveRows, terms: Terms) -> Float[Array, "N B L L"]:
    """Returns the sum of the position terms of queries at their own positions, in their dtype and without the scale.

    Pairs with a position beyond the last token, S - 1, get the products of some row.
    """
    length = terms.query.shape[2]
    scores = jnp.zeros((*terms.query.shape[:3], length), jnp.float32)
    if terms.pos_key is not None:
        scores += _term(terms.query, terms.pos_key, _rows_of_queries(live, length)).astype(jnp.float32)
    if terms.pos_query is not None:
        by_keys = _term(terms.key, terms.pos_query, _rows_of_keys(live, length))
        scores += by_keys.swapaxes(-1, -2).astype(jnp.float32)
    return scores.astype(terms.query.dtype)


def _forward(live: LiveRows, terms: Terms) -> tuple[Float[Array, "N B L L"], Terms]:
    return position_terms(live, terms), terms


def _backward(live: LiveRows, terms: Terms, gradient: Float[Array, "N B L L"]) -> tuple[Terms]:
    length = gradient.shape[-1]
    found = Terms(jnp.zeros_like(terms.query), jnp.zeros_like(terms.key), None, None)
    if terms.pos_key is not None:
        query, table = _gradients(terms.query, terms.pos_key, gradient, _rows_of_queries(live, length))
        found = found._replace(query=query, pos_key=table)
    if terms.pos_query is not None:
        by_keys = gradient.swapaxes(-1, -2)
        key, table = _gradients(terms.key, terms.pos_query, by_keys, _rows_of_keys(live, length))
        found = found._replace(key=key, pos_query=table)
    return (found,)


position_terms.defvjp(_forward, _backward)


# ---------------------------------------------------------------- one term


def _term(
    x: Float[Array, "N B L H"], table: Float[Array, "N P H"], rows: Int[np.ndarray, "distances"]
) -> Float[Array, "N B L L"]:
    """Returns the products of each token with the rows of its distances to all tokens, in the dtype of the tokens.

    Args:
      x: the tokens.
      table: rows of the relative table.
      rows: row of each distance, see `_rows_of_queries`.
    """
    length = x.shape[2]
    windows = table[:, rows[_columns(length)]]
    products = jnp.einsum("nbkth,nkch->nkbtc", _in_blocks(x), windows, preferred_element_type=x.dtype)
    return _moved(products, length)


def _gradients(
    x: Float[Array, "N B L H"],
    table: Float[Array, "N P H"],
    gradient: Float[Array, "N B L L"],
    rows: Int[np.ndarray, "distances"],
) -> tuple[Float[Array, "N B L H"], Float[Array, "N P H"]]:
    """Returns the gradients of the tokens and the table of `_term`."""
    heads, batch, length, _ = x.shape
    columns, block = _columns(length), _block(length)
    products = jax.ShapeDtypeStruct((heads, length // block, batch, block, columns.shape[1]), gradient.dtype)
    (by_distance,) = jax.linear_transpose(functools.partial(_moved, length=length), products)(gradient)
    windows = table[:, rows[columns]]
    of_tokens = jnp.einsum("nkbtc,nkch->nbkth", by_distance, windows, preferred_element_type=jnp.float32)
    of_windows = jnp.einsum("nkbtc,nbkth->nkch", by_distance, _in_blocks(x), preferred_element_type=jnp.float32)
    # Rows of the same distance are added before those of the same row: a scatter of all windows would take long.
    of_distances = sum(
        jnp.pad(of_windows[:, number], ((0, 0), (first, len(rows) - last - 1), (0, 0)))
        for number, (first, last) in enumerate(columns[:, [0, -1]].tolist())
    )
    of_table = jnp.zeros(table.shape, jnp.float32).at[:, rows].add(of_distances)
    return of_tokens.reshape(x.shape).astype(x.dtype), of_table.astype(table.dtype)


# ---------------------------------------------------------------- blocks and distances


def _block(length: int) -> int:
    """Returns the tokens of a block: the fewest that divide the length and make at most `_BLOCKS` blocks, or 64.

    A length such as 64 times a prime has many blocks.
    """
    sizes = [size for size in range(BLOCK, length // 2 + 1, BLOCK) if length % size == 0]
    return next((size for size in sizes if length <= size * _BLOCKS), sizes[-1] if sizes else length)


def _in_blocks(x: Float[Array, "N B L H"]) -> Float[Array, "N B blocks block H"]:
    return x.reshape(*x.shape[:2], -1, _block(x.shape[2]), x.shape[-1])


def _rows_of_queries(live: LiveRows, length: int) -> Int[np.ndarray, "distances"]:
    """Returns the row of every distance of a query to keys, from the farthest key before it to the farthest one after.

    The last block of queries reads the first rows, the first one the last rows.
    """
    return _rows(live, length - 1 - np.arange(2 * length))


def _rows_of_keys(live: LiveRows, length: int) -> Int[np.ndarray, "distances"]:
    """Returns the same for a key and queries."""
    return _rows(live, np.arange(2 * length) - length + 1)


def _rows(live: LiveRows, distance: Int[np.ndarray, "distances"]) -> Int[np.ndarray, "distances"]:
    """Returns the rows of distances, some row for one that no two tokens have."""
    farthest = live.length - 1
    return live.row_of_distance[farthest - np.clip(distance, -farthest, farthest)]


def _columns(length: int) -> Int[np.ndarray, "blocks columns"]:
    """Returns the distances of each block of tokens, as indices of `_rows_of_queries`.

    Column c of token t of a block is that of the token t + c - (block - 1). The last column belongs to no token: it
    makes their number even, and the shift drops it.
    """
    block = _block(length)
    first = np.arange(length - block, -1, -block)  # distance 0 of the first block is in the middle
    return first[:, None] + np.arange(length + block)


def _moved(products: Float[Array, "N blocks B block columns"], length: int) -> Float[Array, "N B L L"]:
    """Moves columns by distance to columns by position."""
    heads, _, batch, *_ = products.shape
    return relative_shift(products, length).swapaxes(1, 2).reshape(heads, batch, length, length)
