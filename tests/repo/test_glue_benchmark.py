"""Tests tests/benchmarks/glue.py, with a stand-in for training: files, tables, and that an interrupted run resumes."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import matthews_corrcoef

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.strict_json import to_json
from deberta_jax.train.hosts.exit_codes import StoppedError

from ..benchmarks import glue
from ..benchmarks.glue import RANDOM, TFIDF, FineTuning, Start, markdown
from ..benchmarks.glue_files import find_files
from ..benchmarks.study import Study, one_line_errors, shown, update_page
from ..support.small_models import TINY

SENTENCES = ("a good film", "a bad film", "good and warm", "bad and cold")


def write_files(folder: Path) -> None:
    (folder / "SST-2").mkdir(parents=True)
    (folder / "CoLA").mkdir()
    for split in ("train", "dev"):
        rows = [f"{text}\t{int('good' in text)}\n" for text in SENTENCES]
        (folder / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
        rows = [f"x\t{int(index < 3)}\t\t{text}\n" for index, text in enumerate(SENTENCES)]
        (folder / "CoLA" / f"{split}.tsv").write_text("".join(rows))


def options(tmp_path: Path, **others: Any) -> argparse.Namespace:
    for name in ("model", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(to_json(TINY.to_json()))
    defaults: dict[str, Any] = {
        "glue": tmp_path / "files",
        "models": [f"mine={tmp_path / 'model'}", str(tmp_path / "other")],
        "output": tmp_path / "out",
        "tasks": ["sst2", "cola"],
        "seeds": 2,
        "rate": 3e-4,
        "random_rate": 1e-4,
        "finetune_steps": 5,
        "max_hours": float("inf"),
    }
    return argparse.Namespace(**{**defaults, **others})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces training: the list has the settings of all runs, and the metrics depend on them."""
    runs: list[Any] = []

    def main(config: Any) -> dict[str, dict[str, float]]:
        runs.append(config)
        for part in ("checkpoints", "model"):
            (config.output / part).mkdir(parents=True)
        value = 0.5 if config.random_weights else 0.7 + 0.1 * config.seed
        return {"validation": {"accuracy": value, "matthews_correlation": value - 0.5}}

    monkeypatch.setattr(glue.finetune, "main", main)
    monkeypatch.setattr(glue, "model_folder", lambda path: path)
    return runs


def test_all_files_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    assert set(find_files(tmp_path / "files", ["cola", "sst2"])) == {"cola", "sst2"}
    (tmp_path / "files/SST-2/dev.tsv").unlink()
    with pytest.raises(MissingFileError, match=r"lacks sst2/dev.tsv or SST-2/dev.tsv, rte/train.tsv or RTE/train.tsv"):
        find_files(tmp_path / "files", ["sst2", "rte"])


def test_results_become_a_table(tmp_path: Path) -> None:
    write_files(tmp_path / "files")
    settings = FineTuning(find_files(tmp_path / "files", ["sst2", "cola"]), seeds=(0, 1))
    starts = [Start("mine", tmp_path), Start(RANDOM, tmp_path, random=True)]
    results = {
        TFIDF: {"sst2": {"accuracy": [0.8]}, "cola": {"matthews_correlation": [0.1]}},
        "mine": {"sst2": {"accuracy": [0.85, 0.87]}, "cola": {"matthews_correlation": [0.2]}},
        RANDOM: {"sst2": {"accuracy": [0.8]}},
    }
    assert markdown(settings, starts, results).splitlines() == [
        "| from | SST-2 (accuracy) | CoLA (Matthews) |",
        "| --- | --- | --- |",
        "| mine | 86.0 ± 1.4 | 20.0 (1 of 2) |",
        "| random weights | 80.0 (1 of 2) | - |",
        "| TF-IDF | 80.0 | 10.0 |",
        "",
        "* mine minus random weights: SST-2 +6.0",
        "* mine minus TF-IDF: SST-2 +6.0, CoLA +10.0",
    ]
    assert shown([0.5], expected=1) == "50.0"


def test_interrupted_run_resumes(tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "files")
    whole = glue.finetune.main

    def interrupted(config: Any) -> Any:
        if len(trained) == 3:
            raise KeyboardInterrupt
        return whole(config)

    with monkeypatch.context() as patch:
        patch.setattr(glue.finetune, "main", interrupted)
        with pytest.raises(KeyboardInterrupt):
            glue.run(options(tmp_path))
    assert "(1 of 2)" in (tmp_path / "out/results.md").read_text()
    glue.run(options(tmp_path))
    assert len(trained) == 2 * 2 * 3  # seeds, tasks, starts
    assert len({config.output for config in trained}) == len(trained)
    assert {config.optimizer.learning_rate for config in trained if config.random_weights} == {1e-4}
    before = (tmp_path / "out/results.md").read_text()
    glue.run(options(tmp_path))
    assert len(trained) == 12
    assert (tmp_path / "out/results.md").read_text() == before
    assert "| mine | 75.0 ± 7.1 | 25.0 ± 7.1 |" in before
    assert not list((tmp_path / "out").rglob("checkpoints"))
    with pytest.raises(UserError, match="result of another steps"):
        glue.run(options(tmp_path, finetune_steps=6))
    changed = options(tmp_path, models=[str(tmp_path / "other"), f"mine={tmp_path / 'model'}"])
    (tmp_path / "other/config.json").write_text(to_json(TINY.replace(num_hidden_layers=3).to_json()))
    with pytest.raises(UserError, match=r"random weights/.* result of another model"):
        glue.run(changed)


def test_time_is_over(tmp_path: Path, trained: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path / "files")
    glue.run(options(tmp_path, max_hours=0.0))
    assert not trained
    assert capsys.readouterr().out.strip() == "stopped after 0 hours; the same command continues"
    with pytest.raises(StoppedError):
        Study(tmp_path, 0.0).seconds_left()


def test_tfidf_has_the_best_of_its_settings(tmp_path: Path) -> None:
    """The development set has the texts of the training set, so a weak penalty reaches the perfect score."""
    write_files(tmp_path / "files")
    files = find_files(tmp_path / "files", ["cola"])["cola"]
    result = glue.tfidf(Study(tmp_path / "out"), "cola", files)
    assert result["metrics"] == {"matthews_correlation": matthews_corrcoef([1, 1, 1, 0], [1, 1, 1, 0])}
    assert result["strength"] > 0.1
    saved = json.loads((tmp_path / "out/tfidf/cola.json").read_text())
    assert saved["result"] == result


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"models": ["a=x", "a=y"]}, "two models have the same name"),
        ({"models": ["TF-IDF=x"]}, "'TF-IDF' is a row of the table already"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, trained: list[Any], changed: Any, message: str, capsys: Any) -> None:
    write_files(tmp_path / "files")
    with pytest.raises(SystemExit, match="1"), one_line_errors():
        glue.run(options(tmp_path, **changed))
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not trained


def test_page_is_updated_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(MissingFileError, match="is not a file"):
        update_page(page, "mark", [])
    page.write_text("before\n\n<!-- mark -->\nold\n<!-- end -->\n\nafter\n")
    update_page(page, "mark", ["one", "two"])
    assert page.read_text() == "before\n\n<!-- mark -->\n\none\n\ntwo\n\n<!-- end -->\n\nafter\n"
    with pytest.raises(UserError, match="must contain"):
        update_page(page, "other", [])
