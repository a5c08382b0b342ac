"""The embeddings of tokens that were added to a vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM, Tokenizer
from deberta_jax.new_rows import NewRows, add_rows
from deberta_jax.sharding import make_mesh, named_shardings

from ..support.small_models import TINY, random_params

PARAMS = random_params(DebertaForMaskedLM(TINY), jnp.ones((1, 8), jnp.int32))


def table_of(params):
    return np.asarray(params["deberta"]["embeddings"]["word_embeddings"]["embedding"])


def test_rows_are_means_of_the_pieces_in_spare_rows_first() -> None:
    rows = NewRows(630, ((5, 7), (9,), ()))
    config, params = add_rows(TINY, PARAMS, rows)
    old, new = table_of(PARAMS), table_of(params)
    assert (config, new.shape) == (TINY, old.shape)
    np.testing.assert_allclose(new[630], (old[5] + old[7]) / 2, rtol=1e-6)
    np.testing.assert_allclose(new[631], old[9], rtol=1e-6)
    np.testing.assert_allclose(new[632], old[:630].mean(axis=0), rtol=1e-4, atol=1e-7)
    unchanged = np.r_[0:630, 633:640]
    np.testing.assert_array_equal(new[unchanged], old[unchanged])
    bias, was = np.asarray(params["mlm_head"]["bias"]), PARAMS["mlm_head"]["bias"]
    np.testing.assert_allclose(bias[630:632], [(was[5] + was[7]) / 2, was[9]], rtol=1e-6)


def test_a_table_that_is_too_small_grows_to_a_multiple_of_64_also_sharded() -> None:
    rows = NewRows(639, ((5,), (6,)))
    config, params = add_rows(TINY, PARAMS, rows)
    assert config.vocab_size == 704
    assert table_of(params).shape == (704, 32)
    assert params["mlm_head"]["bias"].shape == (704,)
    np.testing.assert_array_equal(table_of(params)[641:], 0)
    placed = jax.device_put(PARAMS, named_shardings(PARAMS, make_mesh(fsdp=2, tensor=2)))
    np.testing.assert_allclose(table_of(add_rows(TINY, placed, rows).params), table_of(params), rtol=1e-6)
    mlm = DebertaForMaskedLM(config)
    assert mlm.apply({"params": params}, np.array([[640, 5]])).logits.shape == (1, 2, 704)


def test_the_pieces_are_those_of_the_tokenizer_before(novel) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.from_folder(novel / "tokenizer")
    rows = NewRows.of(tokenizer, ["the man", "\n"])
    assert rows == NewRows(601, (tuple(tokenizer.encode("the man")), ()))
