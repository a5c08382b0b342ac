"""The position terms of the scores: products with the relative table, moved to their pairs of query and key.

Both terms depend on the positions i of a query and j of a key through i - j alone. So every product is computed once
per reachable row of the table, and then moved to its place: by a gather, or on a TPU, which reshapes quickly and
gathers slowly, by a shift.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .positions import LiveRows, SymbolicRows

_LONGEST_CONSTANT = 1024  # tokens: 4 MiB

Queries = Int[Array | np.ndarray, "T"] | Int[Array | np.ndarray, "B T"] | None


def content_to_position(
    query: Float[Array, "N B T H"], table: Float[Array, "N P H"], live: LiveRows | SymbolicRows, queries: Queries = None
) -> Float[Array, "N B T S"]:
    """Products of each query with the table; entry i, j is that of the row of the distance of query i and key j.

    Args:
      query: projected queries.
      table: keys of the live rows of the relative table.
      live: which of these rows each distance reads.
      queries: positions of the queries, the same or others in each sequence (default: those of all tokens).
    """

    def gathered(query: jax.Array, table: jax.Array) -> jax.Array:
        rows, products = rows_of_pairs(live, queries), _per_row(query, table)
        if rows.ndim == 3:
            return jnp.take_along_axis(products, rows[None], axis=-1)
        return _gather(products, live.positions[: query.shape[2], None] * table.shape[1] + rows)

    if queries is not None:
        return gathered(query, table)
    # Every distance gets a product of its own.
    return jax.lax.platform_dependent(
        query,
        table,
        tpu=lambda query, table: relative_shift(_per_row(query, table[:, live.c2p_columns])),
        default=gathered,
    )


def position_to_content(
    key: Float[Array, "N B S H"], table: Float[Array, "N P H"], live: LiveRows | SymbolicRows, queries: Queries = None
) -> Float[Array, "N B T S"]:
    """Products of each key with the table; entry i, j is that of the row of the distance of query i and key j.

    Args:
      key: projected keys.
      table: queries of the live rows of the relative table.
      live: which of these rows each distance reads.
      queries: positions of the queries, the same or others in each sequence (default: those of all tokens).
    """

    def gathered(key: jax.Array, table: jax.Array) -> jax.Array:
        rows, products = rows_of_pairs(live, queries), _per_row(key, table)
        if rows.ndim == 3:
            return jnp.take_along_axis(products, rows.swapaxes(-1, -2)[None], axis=-1).swapaxes(-1, -2)
        return _gather(products, live.positions * table.shape[1] + rows)

    def shifted(key: jax.Array, table: jax.Array) -> jax.Array:
        # The rows are keys, whose distance to the queries grows the other way: the order is reversed.
        scores = relative_shift(_per_row(key, table[:, live.p2c_columns])).swapaxes(-1, -2)
        return scores if queries is None else jnp.take_along_axis(scores, queries[None, ..., None], axis=-2)

    if queries is not None and queries.ndim == 1:
        return gathered(key, table)
    return jax.lax.platform_dependent(key, table, tpu=shifted, default=gathered)


def rows_of_pairs(
    live: LiveRows | SymbolicRows, queries: Queries = None
) -> Int[Array | np.ndarray, "T S"] | Int[Array | np.ndarray, "B T S"]:
    """Returns the row that each pair of a query and a key reads. A query beyond the last token reads any row.

    The rows of all pairs are a constant of the program, unless they are so many that compilation would take minutes and
    gigabytes. Then they are computed, from positions that the compiler does not know to be constant.
    """
    if queries is None and not (isinstance(live, LiveRows) and live.length > _LONGEST_CONSTANT):
        return live.row_of_pair()
    if queries is None:
        queries = jax.lax.optimization_barrier(jnp.asarray(live.positions))
    return live.rows_of(jnp.asarray(queries)[..., None] - live.positions)


def _per_row(x: Float[Array, "N B S H"], table: Float[Array, "N P H"]) -> Float[Array, "N B S P"]:
    """Products of every token with every row of the table: one matrix product per head over all sequences."""
    heads, batch, length, size = x.shape
    products = product("nxh,nph->nxp", x.reshape(heads, batch * length, size), table)
    return products.reshape(heads, batch, length, -1)


def _gather(products: Float[Array, "N B X P"], index: Int[Array | np.ndarray, "T S"]) -> Float[Array, "N B T S"]:
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


def relative_shift(
    x: Shaped[Array, "*lead T distances"], columns: int | None = None
) -> Shaped[Array, "*lead T columns"]:
    """Moves columns by distance to columns by position: out[..., i, j] = x[..., i, T - 1 - i + j].

    This is Transformer-XL's relative shift. Row i of the result starts one element earlier than row i - 1, so in the
    flattened matrix, rows of one element less line up: the shift is a reshape. A gather would be slow on a TPU.

    Args:
      x: [..., T, at least T - 1 + columns]; column c of row i belongs to position i - (T - 1) + c: a key for c2p, a
        query for p2c. More columns are dropped.
      columns: number of positions (default: T, that of the rows).
    """
    *lead, length, width = x.shape
    if width == 1:
        return x
    flat = x.reshape(*lead, length * width)[..., length - 1 : length - 1 + length * (width - 1)]
    return flat.reshape(*lead, length, width - 1)[..., : length if columns is None else columns]


def product(spec: str, left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns an einsum in float32."""
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)
