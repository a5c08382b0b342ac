"""Vectors of texts."""

from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import Deberta
from deberta_jax.errors import UserError
from deberta_jax.predict.embeddings import EmbedTexts

from ...support.predictor import random_predictor

TEXTS = ["It was a fine house of them.", "running", ""]


def hidden_states(text: str) -> np.ndarray:
    model = random_predictor()
    output: Any = jax.jit(Deberta(model.config).apply)(
        {"params": model.params["deberta"]}, np.array([model.tokenizer(text).input_ids])
    )
    return np.asarray(output.last_hidden_state[0], np.float64)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("mean", lambda x: x.mean(axis=0)), ("max", lambda x: x.max(axis=0)), ("cls", lambda x: x[0])],
)
def test_tokens_are_pooled_without_padding(pooling: Any, pool: Any) -> None:
    vectors = random_predictor().embed(TEXTS, pooling=pooling, normalize=False)
    expected = [pool(hidden_states(text)) for text in TEXTS]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert vectors.dtype == np.float32


def test_vectors_have_length_one() -> None:
    vectors = random_predictor().embed([*TEXTS, "It was a house of the family " * 30], max_length=32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_long_texts_are_read_in_windows() -> None:
    (result,) = random_predictor().run(EmbedTexts(), ["It was a house of the family " * 200])
    assert result.windows > 2
    assert len(result.vector) == random_predictor().config.hidden_size


def test_no_texts_give_an_empty_array() -> None:
    assert random_predictor().embed([]).shape == (0, random_predictor().config.hidden_size)


def test_unknown_pooling_is_named() -> None:
    with pytest.raises(UserError, match="pooling is 'sum'; it must be one of mean, cls, max"):
        random_predictor().embed(["text"], pooling="sum")  # pyright: ignore[reportArgumentType]
