"""Relative positions against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import export, symbolic_shape

from deberta_jax import DebertaConfig
from deberta_jax.positions import LiveRows, SymbolicRows, live_rows, log_bucket, relative_index

from ..support.golden_cases import load


@pytest.mark.parametrize(("buckets", "reach"), [(256, 512), (128, 512), (32, 128), (8, 32), (16, 64)])
def test_buckets_equal_official_buckets(buckets: int, reach: int) -> None:
    case = load("buckets")
    distance = case.arrays["inputs/relative_pos"]
    config = DebertaConfig(
        vocab_size=8,
        relative_attention=True,
        pos_att_type="c2p|p2c",
        position_buckets=buckets,
        max_relative_positions=reach,
    )
    bucket = log_bucket(distance, buckets=buckets, reach=reach)
    np.testing.assert_array_equal(bucket, case.arrays[f"outputs/bucket_{buckets}_{reach}"])
    np.testing.assert_array_equal(relative_index(distance, config), case.arrays[f"outputs/index_{buckets}_{reach}"])


@pytest.mark.parametrize("reach", [512, 64])
def test_index_without_buckets_equals_official_index(reach: int) -> None:
    case = load("buckets")
    config = DebertaConfig(vocab_size=8, relative_attention=True, pos_att_type="c2p", max_relative_positions=reach)
    index = relative_index(case.arrays["inputs/relative_pos"], config)
    np.testing.assert_array_equal(index, case.arrays[f"outputs/index_nobucket_{reach}"])


@pytest.mark.parametrize("length", [1, 2, 7, 128, 512, 700])
@pytest.mark.parametrize("name", ["deberta-base", "deberta-v3-base"])
def test_live_rows_are_the_indices_of_every_distance(name: str, length: int) -> None:
    config = DebertaConfig.named(name)
    live = live_rows(length, config)
    row_of_distance = live.row_of_distance
    assert live.length == length
    distances = np.arange(length - 1, -length, -1)
    np.testing.assert_array_equal(row_of_distance + live.start, relative_index(distances, config))
    assert row_of_distance.min() == 0
    assert row_of_distance.max() == live.stop - live.start - 1
    assert live.start >= (1 if length <= 512 else 0)  # row 0 is never trained at 512 tokens


def test_live_rows_are_compared_by_value() -> None:
    config = DebertaConfig.named("deberta-v3-base")
    live = live_rows(7, config)
    assert live == live_rows(7, config)
    assert hash(live) == hash(live_rows(7, config))
    assert live != live_rows(8, config)


def test_row_of_pair_is_the_row_of_the_distance() -> None:
    live = LiveRows(0, 5, np.array([4, 3, 2, 1, 0]))  # distances 2 .. -2 of three tokens
    np.testing.assert_array_equal(live.row_of_pair(), [[2, 1, 0], [3, 2, 1], [4, 3, 2]])


@pytest.mark.parametrize(("buckets", "reach"), [(16, 64), (-1, 12), (16, 10)], ids=["buckets", "none", "odd"])
def test_rows_of_any_length_are_those_of_each_length(buckets: int, reach: int) -> None:
    """In the odd table buckets are farther than their distances: 9 tokens away is bucket 15."""
    config = DebertaConfig(
        vocab_size=8,
        relative_attention=True,
        pos_att_type="c2p|p2c",
        position_buckets=buckets,
        max_relative_positions=reach,
    )

    def rows(tokens):
        live = live_rows(tokens.shape[0], config)
        assert isinstance(live, SymbolicRows)
        selected = live.rows_of(live.positions[::2, None] - live.positions)
        arrays = {"pairs": live.row_of_pair(), "c2p": live.c2p_columns, "p2c": live.p2c_columns, "selected": selected}
        return {name: live.table_rows[array] for name, array in arrays.items()}

    shape = jax.ShapeDtypeStruct(symbolic_shape("length"), jnp.int32)
    run = jax.jit(export(jax.jit(rows))(shape).call)
    for length in (1, 2, 9, 100):
        found, live = run(np.zeros(length, np.int32)), live_rows(length, config)
        np.testing.assert_array_equal(found["pairs"], live.row_of_pair() + live.start)
        np.testing.assert_array_equal(found["selected"], live.row_of_pair()[::2] + live.start)
        for name, columns in (("c2p", live.c2p_columns), ("p2c", live.p2c_columns)):
            assert len(found[name]) == 2 * length  # the last one is dropped by the shift
            np.testing.assert_array_equal(found[name][:-1], columns + live.start)
