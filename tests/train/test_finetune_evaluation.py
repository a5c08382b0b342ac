"""Results of a run: metrics that are undefined, and the unit of old evaluations."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.finetune_evaluation import Validation, check_predictions_size, why_undefined


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
    best = Validation(predictor, mock.Mock(), mock.Mock()).best
    best.set_state({"step": 20, "value": 87.5, "waited": 1})
    assert best.value == value


def test_the_size_of_large_predictions_is_known_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": range(10**9), "validation": range(2000), "test": range(1000)}
    task: Any = SimpleNamespace(
        splits=splits, examples=splits, record_size={"validation": 72e3, "test": 1e3}.__getitem__
    )
    reporter = mock.Mock()
    check_predictions_size(task, tmp_path, reporter)
    (message,) = reporter.message.call_args.args
    assert message.startswith(
        "the predictions will need about 145 MB (validation 144 MB, test 1 MB); a smaller --top-k"
    )
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100e6))
    with pytest.raises(UserError, match=r"about 145 MB .* but the disk of .* has 100 MB left; free some space"):
        check_predictions_size(task, tmp_path, reporter)
    task.record_size = lambda _: 10
    check_predictions_size(task, tmp_path, reporter)
    assert reporter.message.call_count == 1
