"""The figures of pre-training against values worked out by hand, in degenerate cases, and without all counts."""

import math

import pytest

from deberta_jax.train.reporting.pretraining_metrics import pretraining_figures

COUNTS = {
    "masked_loss_sum": 20.0,
    "masked_count": 10.0,
    "masked_correct": 4.0,
    "rtd_loss_sum": 30.0,
    "rtd_count": 100.0,
    "rtd_correct": 90.0,
    "replaced_true_positive": 3.0,
    "replaced_predicted": 4.0,
    "replaced_actual": 6.0,
}


def test_figures_by_hand():
    assert pretraining_figures(COUNTS) == pytest.approx(
        {
            "generator_loss": 2.0,
            "masked_accuracy": 0.4,
            "perplexity": math.exp(2),
            "discriminator_loss": 0.3,
            "rtd_accuracy": 0.9,
            "replaced_precision": 0.75,
            "replaced_recall": 0.5,
            "replaced_f1": 0.6,
        }
    )


def test_no_discriminator_figures_without_its_counts():
    masked = {name: value for name, value in COUNTS.items() if name.startswith("masked")}
    assert set(pretraining_figures(masked)) == {"generator_loss", "masked_accuracy", "perplexity"}


def test_no_tokens_give_nan_and_a_huge_loss_infinite_perplexity():
    assert all(math.isnan(value) for value in pretraining_figures(dict.fromkeys(COUNTS, 0.0)).values())
    assert pretraining_figures(COUNTS | {"masked_loss_sum": 1e5})["perplexity"] == math.inf


def test_numbers_per_step_are_averaged():
    figures = pretraining_figures(COUNTS | {"steps": 4.0, "learning_rate": 2.0})
    assert figures["learning_rate"] == 0.5
    assert "steps" not in figures


@pytest.mark.parametrize(
    ("sums", "missing"),
    [
        ({"masked_count": 1.0}, "masked_correct, masked_loss_sum"),
        ({name: value for name, value in COUNTS.items() if name != "rtd_count"}, "rtd_count"),
        (COUNTS | {"learning_rate": 1.0}, "steps"),
    ],
)
def test_missing_counts_are_named(sums, missing):
    with pytest.raises(ValueError, match=f"sums lack {missing};"):
        pretraining_figures(sums)
