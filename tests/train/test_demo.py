"""The parts of the demo without training, and by hand (`pytest -m long`) the whole demo."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.__main__ import main
from deberta_jax.console import PlainConsole
from deberta_jax.train.demo import DemoConfig, expected_seconds, questions_of
from deberta_jax.train.demo_questions import Answers, AnyTokenReplaced, tfidf_accuracy
from deberta_jax.train.demo_screen import TimeLeft, draw_demo, held_out_table, results_table, show_text, verdicts
from deberta_jax.train.reporting.jsonl import write_records
from deberta_jax.train.samples import Guess, SampledToken

ANSWERS = Answers([0.75, 0.70], [0.52, 0.71], 0.7, 0.5)
METRICS = [
    {"step": 0, "eval/generator_loss": 5.0, "eval/discriminator_loss": 0.4},
    {"step": 10, "generator_loss": 4.5, "discriminator_loss": 0.3},
    {"step": 10, "eval/generator_loss": 4.0, "eval/discriminator_loss": 0.35},
]


def test_a_text_has_the_positive_class_if_any_token_looks_wrong() -> None:
    logits = np.array([[9.0, -3.0, 2.0, 5.0], [0.0, -3.0, -4.0, 5.0]], np.float32)
    batch = {"attention_mask": np.array([[0, 1, 1, 0], [0, 1, 1, 0]]), "labels": np.array([1, 1])}
    out = types.SimpleNamespace(logits=logits)
    scores = np.log(np.exp([[-3.0, 2.0], [-3.0, -4.0]]).sum(axis=1))
    for positive in (0, 1):
        objective = AnyTokenReplaced(positive)
        probabilities = np.asarray(objective.predict(out, batch)["probabilities"])
        expected = 1 / (1 + np.exp(-scores))
        np.testing.assert_allclose(probabilities[:, positive], expected, rtol=1e-5)
        np.testing.assert_allclose(objective.predict(out, batch)["score"], scores, rtol=1e-5)
        batch["input_ids"] = np.ones((2, 4), np.int32)
        total, count = objective.loss(out, batch)
        np.testing.assert_allclose(total, -np.log(probabilities[:, 1]).sum(), rtol=1e-5)
        assert count == 2


def test_the_time_left_follows_the_stages_that_ended() -> None:
    times = iter([0.0, 5.0, 40.0, 100.0])
    clock = TimeLeft({"a": 20, "b": 60, "c": 120}, now=lambda: next(times))
    clock_now = str(clock)
    assert clock_now == "about 3:20 on two quiet cores"
    clock.end("a")
    assert str(clock) == "0:40 passed, about 6:00 left"
    clock.end("b", share=0.5)
    assert str(clock) == "1:40 passed, about 5:00 left"


def test_the_demo_is_planned_for_five_minutes() -> None:
    config = DemoConfig()
    expected = expected_seconds(config)
    assert sum(expected.values()) <= 300
    assert {question.name for question in questions_of(config)} <= set(expected)


def test_verdicts_count_seeds_and_show_where_tfidf_wins() -> None:
    assert verdicts(ANSWERS) == [
        "deberta-v3-tiny beats random weights on 1 of 2 seeds",
        "deberta-v3-tiny beats TF-IDF on 1 of 2 seeds",
        "TF-IDF wins or ties on 1 of 2 seeds",
    ]


def test_the_screen(tmp_path: Path, capsys) -> None:
    guesses = (Guess("door", 0.5), Guess("window", 0.25))
    tokens = [
        SampledToken("The", "The", True, True, (), 0.01),
        SampledToken("window", "door", True, True, guesses, 0.61),
        SampledToken(".", ".", False, False, (), 0.02),
    ]
    console = PlainConsole(width=100)
    show_text(console, tokens)
    printed = capsys.readouterr().out
    assert "The [MASK]." in printed
    assert "door 50 %, window 25 %" in printed
    assert "The door (window, 61 %)." in printed
    write_records(tmp_path / "metrics.jsonl", METRICS)
    console.print(held_out_table(tmp_path / "metrics.jsonl"))
    question, _ = questions_of(DemoConfig())
    console.print(results_table(question, ANSWERS))
    printed = capsys.readouterr().out
    assert "5.0000" in printed
    assert "72.5 %" in printed
    draw_demo(tmp_path / "demo.png", tmp_path / "metrics.jsonl", [(question, ANSWERS), (question, ANSWERS)])
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_tfidf_of_a_question(tmp_path: Path) -> None:
    question, _ = questions_of(DemoConfig())
    for split in ("train", "test"):
        rows = [{"text": f"{word} {number}", "label": word} for word in ("sea", "land") for number in range(4)]
        (tmp_path / f"{question.name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tfidf_accuracy(question, tmp_path) == 1.0


@pytest.mark.long
def test_the_whole_demo_keeps_its_promises(tmp_path: Path) -> None:
    assert main(["demo", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    for name in ("exchange", "novel"):
        found = results[name]
        assert all(tiny > random for tiny, random in zip(found["tiny"], found["random"], strict=True))
    assert min(results["exchange"]["tiny"]) > results["exchange"]["tfidf"]
    metrics = [json.loads(line) for line in (tmp_path / "pretraining" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in metrics if "eval/generator_loss" in record]
    for loss in ("eval/generator_loss", "eval/discriminator_loss"):
        assert evaluations[-1][loss] < evaluations[0][loss]
