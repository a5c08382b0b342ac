"""Tokens that a masked language model predicts for each [MASK]."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM
from deberta_jax.errors import UserError
from deberta_jax.predict.fill_mask import TokenCandidate, fill_mask, has_untrained_mlm_head, replace_mask

from ...support.predictor import TEXT, head_params, random_predictor


def test_candidates_are_the_most_probable_tokens_of_the_enhanced_mask_decoder() -> None:
    model = random_predictor()
    tokenizer = model.tokenizer
    ids = np.array([tokenizer(TEXT, parse_mask=True).input_ids])
    run = jax.jit(DebertaForMaskedLM(model.config).apply)
    output: Any = run({"params": head_params(model, "mlm_head")}, ids)
    logits = np.asarray(output.logits)[0, :, : tokenizer.vocab_size].astype(np.float64)
    masks = fill_mask(model, TEXT, top_k=7)
    assert len(masks) == 3
    for candidates, mask_logits in zip(masks, logits[ids[0] == tokenizer.mask_id], strict=True):
        probabilities = np.exp(mask_logits) / np.exp(mask_logits).sum()
        best = np.argsort(-probabilities)[:7]
        assert [candidate.id for candidate in candidates] == best.tolist()
        assert [candidate.piece for candidate in candidates] == tokenizer.pieces(best)
        actual = [candidate.probability for candidate in candidates]
        np.testing.assert_allclose(actual, probabilities[best], rtol=1e-4)


def test_candidate_replaces_the_mask_in_the_text() -> None:
    model = random_predictor()
    (token_id,) = model.tokenizer.encode("the")
    candidate = TokenCandidate(token_id, "▁the", 0.5)
    assert replace_mask(model, "It was [MASK] house.", candidate) == "It was the house."


def test_discriminators_have_an_untrained_head() -> None:
    model = random_predictor()
    assert has_untrained_mlm_head(model)
    assert not has_untrained_mlm_head(dataclasses.replace(model, params=head_params(model, "mlm_head")))
    assert not has_untrained_mlm_head(dataclasses.replace(model, params=head_params(model, "rtd_head")))


@pytest.mark.parametrize(
    ("text", "top_k", "message"),
    [
        ("no mask", 5, r"no \[MASK\] in 'no mask'; write it where"),
        (TEXT, 0, "top_k is 0; it must be 1 to 6"),
        (TEXT, 10**6, "top_k is 1000000; it must be 1 to 6"),
    ],
)
def test_unusable_text_or_number_is_refused(text: str, top_k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fill_mask(random_predictor(), text, top_k=top_k)


def test_missing_head_is_named() -> None:
    model = dataclasses.replace(random_predictor(), params=head_params(random_predictor(), "rtd_head"))
    with pytest.raises(
        UserError,
        match=r"has no mlm_head; it has deberta \(the encoder\), rtd_head \(detects .* with `deberta-jax pretrain`",
    ):
        fill_mask(model, TEXT)
