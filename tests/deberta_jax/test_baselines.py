"""BERT, RoBERTa and ELECTRA are the same encoder without relative attention (`tests/convert` has their parity)."""

from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import Deberta, DebertaConfig

from ..support.baselines import SMALL
from ..support.golden_cases import assert_close
from ..support.small_models import random_params


def last_hidden_states(family: str, *calls: dict[str, Any]) -> list[np.ndarray]:
    """Runs a random encoder of a family on several inputs, in one program."""
    model = Deberta(DebertaConfig.from_json({**SMALL[family], "num_hidden_layers": 1, "initializer_range": 0.3}))
    params = random_params(model, np.ones((1, 4), np.int32))
    run = jax.jit(lambda params: [model.apply({"params": params}, **options).last_hidden_state for options in calls])
    return [np.asarray(states) for states in run(params)]


@pytest.mark.parametrize("family", SMALL)
def test_packed_row_equals_single_runs(family: str) -> None:
    ids = np.random.default_rng(0).integers(5, 90, (1, 20))
    packed, first, second = last_hidden_states(
        family,
        {"input_ids": ids, "segment_ids": np.repeat([[1, 2]], [8, 12], axis=1)},
        {"input_ids": ids[:, :8]},
        {"input_ids": ids[:, 8:]},
    )
    assert_close(packed, np.concatenate([first, second], axis=1), 1e-5)


@pytest.mark.parametrize("family", SMALL)
def test_only_roberta_skips_padding_in_positions(family: str) -> None:
    ids = np.random.default_rng(0).integers(5, 90, (1, 9))
    padded = np.pad(ids, ((0, 0), (4, 0)), constant_values=1)
    mask = (np.arange(13) >= 4)[None].astype(np.int32)
    with_padding, plain = last_hidden_states(family, {"input_ids": padded, "attention_mask": mask}, {"input_ids": ids})
    assert (np.abs(with_padding[:, 4:] - plain).max() < 1e-5) == (family == "roberta")


def test_roberta_ignores_token_types() -> None:
    ids = np.random.default_rng(0).integers(5, 90, (2, 9))
    types = np.repeat([[0, 1]], [4, 5], axis=1).repeat(2, axis=0)
    calls = {"input_ids": ids}, {"input_ids": ids, "token_type_ids": types}
    np.testing.assert_array_equal(*last_hidden_states("roberta", *calls))
    plain, typed = last_hidden_states("bert", *calls)
    assert np.abs(typed - plain).max() > 0.01
