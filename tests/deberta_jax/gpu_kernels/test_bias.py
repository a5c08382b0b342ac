"""Position terms by blocks and shifts, against those by gathers, which need neither."""

import jax
import numpy as np
import pytest

from deberta_jax.gpu_kernels import bias
from deberta_jax.gpu_kernels.bias import Terms, _block, position_terms
from deberta_jax.position_scores import content_to_position, position_to_content
from deberta_jax.positions import live_rows

from ...support.attention_cases import CONFIG


@pytest.mark.parametrize(
    ("length", "block"),
    [(64, 64), (128, 64), (512, 64), (576, 192), (640, 128), (704, 64), (1024, 128), (4096, 512)],
)
def test_blocks_divide_the_length_and_are_few(length: int, block: int) -> None:
    assert _block(length) == block
    assert length % block == 0


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        (64, 64),
        (100, 128),  # padding of the length
        (256, 256),  # blocks of 128
        (180, 192),  # more blocks than wanted
    ],
)
def test_terms_and_gradients_equal_those_of_gathers(tokens: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias, "_BLOCKS", 2)
    live = live_rows(tokens, CONFIG)
    keys = jax.random.split(jax.random.key(tokens), 5)
    x = [jax.random.normal(key, (1, 2, length, 4)) for key in keys[:2]]
    tables = [jax.random.normal(key, (1, live.stop - live.start, 4)) for key in keys[2:4]]
    cotangent = jax.random.normal(keys[4], (1, 2, tokens, tokens))

    def by_shifts(terms: Terms) -> jax.Array:
        return position_terms(live, terms)[..., :tokens, :tokens]  # type: ignore[index]

    def by_gathers(terms: Terms) -> jax.Array:
        query, key, pos_key, pos_query = terms
        assert pos_key is not None
        assert pos_query is not None
        scores = content_to_position(query[:, :, :tokens], pos_key, live)
        return scores + position_to_content(key[:, :, :tokens], pos_query, live)

    (found, of_found), (expected, of_expected) = (
        jax.jit(lambda terms, call=call: (call(terms), jax.vjp(call, terms)[1](cotangent)[0]))(Terms(*x, *tables))
        for call in (by_shifts, by_gathers)
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for name, gradient in of_found._asdict().items():
        np.testing.assert_allclose(gradient, getattr(of_expected, name), atol=2e-4, rtol=1e-4, err_msg=name)
