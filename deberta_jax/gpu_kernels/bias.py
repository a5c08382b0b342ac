"""Position terms of the scores on a GPU: gathered going forward, shifted going backward.

Products with the rows of the relative table are rounded to the dtype of the activations and gathered, so that neighbors
in memory stay neighbors: the p2c term is gathered by keys and then transposed. The transpose of a gather would be a
scatter. So the gradient is shifted instead, to one column for each distance, and multiplied by a table that has one row
for each distance.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..position_scores import relative_shift, rows_of_pairs
from ..positions import LiveRows


class Terms(NamedTuple):
    """What the position terms are computed from; a table is None without its term."""

    query: Float[Array, "N B S H"]
    key: Float[Array, "N B S H"]
    pos_key: Float[Array, "N P H"] | None
    pos_query: Float[Array, "N P H"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def position_terms(live: LiveRows, terms: Terms) -> Float[Array, "N B S S"]:
    """Returns the sum of the position terms of queries at their own positions, in their dtype and without the scale."""
    rows, dtype = jnp.asarray(rows_of_pairs(live)), terms.query.dtype
    scores = jnp.zeros((*terms.query.shape[:3], live.length), jnp.float32)
    if terms.pos_key is not None:
        scores += _gather(_products(terms.query, terms.pos_key), rows)
    if terms.pos_query is not None:
        # The row of keys j and queries i is that of distance i - j: the transpose of `rows`.
        scores += _gather(_products(terms.key, terms.pos_query), rows.T).swapaxes(-1, -2)
    return scores.astype(dtype)


def _forward(live: LiveRows, terms: Terms) -> tuple[Float[Array, "N B S S"], Terms]:
    return position_terms(live, terms), terms


def _backward(live: LiveRows, terms: Terms, gradient: Float[Array, "N B S S"]) -> tuple[Terms]:
    found = Terms(jnp.zeros_like(terms.query), jnp.zeros_like(terms.key), None, None)
    if terms.pos_key is not None:
        query, table = _shifted_gradients(terms.query, terms.pos_key, gradient, live.row_of_distance)
        found = found._replace(query=query, pos_key=table)
    if terms.pos_query is not None:
        by_keys = gradient.swapaxes(-1, -2)
        key, table = _shifted_gradients(terms.key, terms.pos_query, by_keys, live.row_of_distance[::-1])
        found = found._replace(key=key, pos_query=table)
    return (found,)


position_terms.defvjp(_forward, _backward)


def _products(x: Float[Array, "N B S H"], table: Float[Array, "N P H"]) -> Float[Array, "N B S P"]:
    return jnp.einsum("nbsh,nph->nbsp", x, table, preferred_element_type=x.dtype)


def _gather(products: Float[Array, "N B S P"], rows: Array) -> Float[Array, "N B S S"]:
    return jnp.take_along_axis(products, rows[None, None], axis=-1, mode="promise_in_bounds").astype(jnp.float32)


def _shifted_gradients(
    x: Float[Array, "N B S H"], table: Float[Array, "N P H"], gradient: Float[Array, "N B S S"], rows: np.ndarray
) -> tuple[Float[Array, "N B S H"], Float[Array, "N P H"]]:
    """Returns the gradients of tokens and table, from that of their term with the tokens' axis before the last.

    Args:
      x: the tokens.
      table: their table.
      gradient: of the term.
      rows: row of each distance, in the order of the columns that `relative_shift` expects.
    """
    rows = np.append(rows, rows[-1])  # an additional column, which the shift drops, makes their number even
    wide = jax.ShapeDtypeStruct((*gradient.shape[:3], len(rows)), gradient.dtype)
    (by_distance,) = jax.linear_transpose(relative_shift, wide)(gradient)
    of_tokens = jnp.einsum("nbsc,nch->nbsh", by_distance, table[:, rows], preferred_element_type=jnp.float32)
    of_rows = jnp.einsum("nbsc,nbsh->nch", by_distance, x, preferred_element_type=jnp.float32)
    of_table = jnp.zeros(table.shape, jnp.float32).at[:, rows].add(of_rows)
    return of_tokens.astype(x.dtype), of_table.astype(table.dtype)
