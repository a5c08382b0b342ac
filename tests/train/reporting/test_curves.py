"""Curves of made-up metrics."""

import json

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.reporting.curves import plot_curves


def test_curves_are_drawn(tmp_path):
    steps = [
        {
            "step": step,
            "generator_loss": None if step == 50 else 10 - step / 20,
            "discriminator_loss": 0.3,
            "masked_accuracy": 0.28,
            "replaced_precision": 0.57,
            "replaced_recall": 0.43,
            "learning_rate": 1e-4,
        }
        for step in range(1, 101)
    ]
    evaluation = {"step": 100, "eval/generator_loss": 5.0, "eval/masked_accuracy": 0.3}
    lines = "\n".join(json.dumps(record) for record in [*steps, evaluation])
    (tmp_path / "metrics.jsonl").write_text(lines + '\n{"step": 101, "gener')  # a kill truncated the last line
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    png = (tmp_path / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


def test_curves_need_a_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\xfe\n[1]\n{"step": null}\n')
    with pytest.raises(UserError, match="holds no step"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with pytest.raises(FileNotFoundError):
        plot_curves(tmp_path / "absent.jsonl", tmp_path / "curves.png")
