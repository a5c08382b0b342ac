"""Scores that a discriminator gives to the tokens of a text."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import DebertaForReplacedTokenDetection
from deberta_jax.errors import UserError
from deberta_jax.predict.replaced_tokens import score_replaced_tokens

from ...support.predictor import head_params, random_predictor


def test_each_token_of_the_text_has_a_probability() -> None:
    model, text = random_predictor(), "It was  a fine house."
    scores = score_replaced_tokens(model, text)
    ids = np.array([model.tokenizer(text).input_ids])
    run = jax.jit(DebertaForReplacedTokenDetection(model.config).apply)
    output: Any = run({"params": head_params(model, "rtd_head")}, ids)
    expected = 1 / (1 + np.exp(-np.asarray(output.logits, np.float64)[0, 1:-1]))
    np.testing.assert_allclose([score.probability for score in scores], expected, rtol=1e-4)
    assert [score.piece for score in scores] == model.tokenizer.pieces(ids[0, 1:-1])
    assert "".join(text[score.start : score.end] for score in scores).replace(" ", "") == "Itwasafinehouse."


def test_empty_text_is_refused() -> None:
    with pytest.raises(UserError, match="the text ' ' has no tokens"):
        score_replaced_tokens(random_predictor(), " ")


def test_missing_head_is_named() -> None:
    model = dataclasses.replace(random_predictor(), params=head_params(random_predictor(), "mlm_head"))
    with pytest.raises(UserError, match=r"has no rtd_head; it has deberta \(the encoder\), mlm_head \(predicts"):
        score_replaced_tokens(model, "text")
