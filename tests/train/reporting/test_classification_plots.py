"""Calibration by hand, and the plot of confusion and calibration."""

import numpy as np
import pytest

from deberta_jax.train.reporting.classification_plots import calibration, draw_confusion, plot_answers
from deberta_jax.train.reporting.pictures import open_figure

from ...support.hostile_texts import ORDINARY


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    error, accuracies, confidences, counts = calibration(probabilities, labels)
    assert counts.sum() == 4
    # 0.9: half of them right; 0.7 and 0.6: all right
    np.testing.assert_allclose(error, (2 * 0.4 + 0.3 + 0.4) / 4)
    np.testing.assert_allclose(accuracies[counts == 2], 0.5)
    np.testing.assert_allclose(confidences[counts == 2], 0.9)


def test_a_model_as_sure_as_right_has_no_error():
    draw = np.random.default_rng(0)
    sure = draw.uniform(0.5, 1, 200_000)
    labels = (draw.uniform(size=len(sure)) > sure).astype(int)
    assert calibration(np.stack([sure, 1 - sure], axis=1), labels)[0] < 0.01


def test_the_plot_is_drawn(tmp_path):
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(3), 50)
    plot_answers(tmp_path / "answers.png", probabilities, draw.integers(0, 3, 50), ("no", "maybe", "yes"))
    assert (tmp_path / "answers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "names",
    [
        ("$cost$", r"\frac{", "a_b^c", "日本🎉", "two\nlines", "x" * 200),
        ("only",),
        tuple(f"class {number} with a rather long name" for number in range(20)),
        tuple(f"${number}" for number in range(1000)),
        ("\x1b]0;title\x07\x9b\u202e\ud800", ORDINARY[2], "document " * 1_000_000),
    ],
    ids=["markup", "one class", "many long names", "a thousand classes", "hostile"],
)
def test_any_names_are_drawn(tmp_path, names):
    count = min(len(names), 50)
    probabilities = np.eye(len(names))[:count]
    plot_answers(tmp_path / "answers.png", probabilities, np.arange(count)[::-1], names)
    assert (tmp_path / "answers.png").read_bytes().startswith(b"\x89PNG")


def test_a_confusion_of_very_many_classes_has_few_cells(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda self, shares, **options: drawn.append(shares))
    count = 20_000
    names, labels = tuple(map(str, range(count))), np.array([0, 39, 40, count - 1])
    with open_figure(tmp_path / "a.png", size=(4, 4)) as figure:
        axes = figure.subplots()
        draw_confusion(axes, labels, labels, names)
        assert axes.get_title() == "Confusion, 40 classes in a cell"
    (shares,) = drawn
    assert shares.shape == (500, 500)
    assert [shares[index, index] for index in (0, 1, 499)] == [1, 1, 1]
    assert shares.sum() == 3
