"""Results of a run: metrics that are undefined, and the unit of old evaluations."""

from typing import Any
from unittest import mock

import pytest

from deberta_jax.train.finetune_evaluation import Validation, why_undefined


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"label": 2.5, "prediction": 1.0}, {"label": 2.5, "prediction": 3.0}], "all labels are 2.5"),
        ([{"label": 2.5, "prediction": 1.0}, {"label": 1.5, "prediction": 1.0}], "all predictions are 1.0"),
        ([{"label": 2.5, "prediction": 1.0}, {"label": 1.5, "prediction": 3.0}], "it has no value for these labels"),
        ([{"words": ["a"]}], "it has no value for these labels"),
    ],
)
def test_the_reason_of_an_undefined_metric(records: list[dict[str, Any]], reason: str) -> None:
    assert why_undefined(records).startswith(reason)


@pytest.mark.parametrize(
    ("metric", "classes", "value"),
    [("f1", (), 0.875), ("answer_f1", ("false", "true"), 0.875), ("f1", ("B-PER", "O"), 87.5), ("pearson", (), 87.5)],
)
def test_evaluations_that_earlier_versions_saved_in_percent(metric: str, classes: tuple, value: float) -> None:
    predictor = mock.Mock()
    predictor.task.main_metric, predictor.task.label_names, predictor.config.selection.patience = metric, classes, 0
    best = Validation(predictor, mock.Mock()).best
    best.set_state({"step": 20, "value": 87.5, "waited": 1})
    assert best.value == value
