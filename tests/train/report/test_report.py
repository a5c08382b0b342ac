"""Reports of made-up runs: what is on the page, that it needs nothing else, and that a browser draws it."""

import html.parser
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.__main__ import main
from deberta_jax.config_file import write_settings
from deberta_jax.embedded import package_folder
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train.configs import FinetuneConfig, PretrainConfig, TaskDataConfig
from deberta_jax.train.report.charts import COLORS
from deberta_jax.train.report.command import ReportConfig
from deberta_jax.train.report.html_parts import element, number, table
from deberta_jax.train.report.page import run_names
from deberta_jax.train.report.run_folder import open_run
from deberta_jax.train.reporting.goodput import read_step_times

HOSTILE = '<script>alert("x")</script> & \x1b]0;title\x07'


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def pretraining_run(folder: Path, *, steps: int = 100, rate: float = 1e-4) -> Path:
    """Writes the files of an unfinished run of pre-training."""
    records: list[dict[str, Any]] = [{"step": 0, "eval/generator_loss": 10.0, "eval/discriminator_loss": 0.7}]
    lines = []
    for step in range(10, steps + 1, 10):
        records.append(
            {
                "step": step,
                "generator_loss": 10 - step / 20,
                "discriminator_loss": 0.5,
                "masked_accuracy": step / 1000,
                "replaced_precision": None,
                "learning_rate": rate,
            }
        )
        seconds = {"step": step / 5, "compile": 7.0, "evaluate": 2.0}
        lines.append({"began": 1000.0, "written": 1030.0 + step, "from_step": 0, "step": step, "seconds": seconds})
    records.append({"step": steps, "eval/generator_loss": 5.0, "eval/discriminator_loss": 0.3})
    write_lines(folder / "metrics.jsonl", records)
    write_lines(folder / "goodput.jsonl", lines)
    config = PretrainConfig(output=folder, tokenizer=Path("tok"), batch_size=16, steps=200, seed=round(rate * 1e5))
    write_settings(folder / "config.yaml", config, command="pretrain", version="9.9")
    return folder


def finetuning_run(folder: Path) -> Path:
    """Writes the files of a finished run of fine-tuning, whose last prediction is a sure mistake."""
    write_lines(
        folder / "metrics.jsonl",
        [{"step": 10, "loss": 0.7, "grad_norm": 1.0, "learning_rate": 1e-4}, {"step": 10, "eval/accuracy": 0.75}],
    )
    answers = [("yes", "yes", 0.6), ("no", "no", 0.8), ("no", "yes", 0.55), ("yes", "no", 0.99)]
    write_lines(
        folder / "predictions" / "validation.jsonl",
        [
            {"text": f"{HOSTILE} {i}", "label": label, "prediction": said, "probabilities": {said: sure}}
            for i, (label, said, sure) in enumerate(answers)
        ],
    )
    (folder / "results.json").write_text(json.dumps({"validation": {"accuracy": 0.5, "f1": None}}))
    config = FinetuneConfig(output=folder, model=Path("m"), data=TaskDataConfig(train="train.csv"))
    write_settings(folder / "config.yaml", config, command="finetune", version="9.9")
    return folder


class Page(html.parser.HTMLParser):
    """The texts of a page by tag, its references, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "html", "!doctype"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "link", "object")
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        return "".join(data for _, data in self.texts)


def report(*runs: Path, output: Path) -> Page:
    assert main(["report", *map(str, runs), "--output", str(output)]) == 0
    return Page(output.read_text(encoding="utf-8"))


def test_an_unfinished_pretraining(tmp_path: Path) -> None:
    page = report(pretraining_run(tmp_path / "run"), output=tmp_path / "out" / "page.html")
    assert "the run has not finished; it has logged step 100 of 200" in page.text
    assert "The run has no finished model yet" in page.text
    assert sum(tag == "h3" and "Generator: loss" in data for tag, data in page.texts) == 1
    assert "40,960" in page.text  # tokens per second: 16 rows of 512 tokens in 0.2 s
    assert "goodput" in page.text
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert len(set(page.ids)) == len(page.ids)


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    runs = pretraining_run(tmp_path / "a" / "run"), pretraining_run(tmp_path / "b" / "run", rate=3e-4)
    page = report(*runs, output=tmp_path / "page.html")
    assert page.text.count("a/run") > 3
    assert page.text.count("b/run") > 3
    rows = [data for tag, data in page.texts if tag == "td"]
    assert rows[rows.index("seed") : rows.index("seed") + 3] == ["seed", "10", "30"]
    assert len(set(page.ids)) == len(page.ids)


def test_finetuning_shows_its_surest_mistakes(tmp_path: Path) -> None:
    page = report(finetuning_run(tmp_path / "run"), output=tmp_path / "page.html")
    assert "2 of 4 are wrong" in page.text
    rows = [data for tag, data in page.texts if tag in ("td", "span")]
    shown = [data for data in rows if "alert" in data]
    assert [data[-1] for data in shown] == ["3", "2"]
    assert all("<script>" in data and r"\x1b]0;title\x07" in data for data in shown)
    assert "validation: labels and predictions" in page.text
    assert "Masked" not in page.text


def test_several_seeds_show_the_best_one(tmp_path: Path) -> None:
    finetuning_run(tmp_path / "seed-1")
    row = {"setting": "", "metric": "accuracy", "mean": 0.5, "margin95": 0.1, "seeds": [0, 1]}
    summary = {"settings": [row], "best": "elsewhere/seed-1/model"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = report(tmp_path, output=tmp_path / "page.html")
    assert "accuracy 0.5000 ± 0.1000 (2 seeds)" in page.text


def test_other_kinds_of_predictions(tmp_path: Path) -> None:
    run = finetuning_run(tmp_path / "run")
    write_lines(run / "predictions" / "test.jsonl", [{"text": "x", "labels": ["a"], "predictions": ["b", "c"]}])
    scores = [{"text": "x", "label": 1.5, "prediction": 0.25}]
    write_lines(run / "predictions" / "validation.jsonl", scores)
    page = report(run, output=tmp_path / "page.html")
    assert "b c" in page.text
    assert "0.25" in page.text


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = finetuning_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [")
    (run / "predictions" / "validation.jsonl").write_text('{"lab\n[]\n')
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 11, "lo')
    page = report(run, output=tmp_path / "page.html")
    for words in ("1 damaged line", "config.yaml is not YAML", "2 damaged lines are left out"):
        assert words in page.text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is not the folder of a run"),
        ({"metrics.jsonl": '{"st'}, "has logged no step yet"),
        ({"config.yaml": "command: pretrain"}, "has logged no step yet"),
        ({"summary.json": "{}"}, "names no best run"),
        ({"summary.json": '{"best": "x/seed-3/model"}'}, "names no best run"),
        ({"results.json": "[]"}, "is not the folder of a run"),
    ],
)
def test_folders_without_a_run_are_one_line(files, words: str, tmp_path: Path, capsys) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_mistakes_of_usage(tmp_path: Path, capsys) -> None:
    with pytest.raises(MissingFileError, match="no folder"):
        open_run(tmp_path / "absent")
    with pytest.raises(UserError, match="3 runs are given"):
        ReportConfig(runs=(tmp_path,) * 3)
    assert main(["report", str(pretraining_run(tmp_path / "run")), "--output", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_samples_of_a_finished_run(tmp_path: Path) -> None:
    run = pretraining_run(tmp_path / "run", steps=200)
    for name in ("generator", "discriminator"):
        shutil.copytree(package_folder("deberta-v3-tiny") / name, run / name)
    page = report(run, output=tmp_path / "page.html")
    assert "the text is from the embedded novels" in page.text
    guesses = [data for tag, data in page.texts if tag == "small"]
    assert len(guesses) >= 4
    assert all(data.count(" %") == 3 for data in guesses)
    assert "has not finished" not in page.text


def test_step_times(tmp_path: Path) -> None:
    line = {"written": 1.0, "from_step": 0}
    lines = [
        {**line, "began": 1.0, "step": 10, "seconds": {"step": 4.0, "compile": 9.0}},
        {**line, "began": 1.0, "step": 20, "seconds": {"step": 6.0, "evaluate": 3.0}},
        {**line, "began": 1.0, "step": 30, "seconds": {"step": 9.0, "input": 1.0}},
        {**line, "began": 2.0, "from_step": 20, "step": 25, "seconds": {"step": 1.0}},
        {**line, "began": 2.0, "from_step": 20, "step": 30, "seconds": {"step": 2.5}},
    ]
    write_lines(tmp_path / "goodput.jsonl", lines)
    assert read_step_times(tmp_path) == [(20, 2.0, 10), (30, 1.5, 5)]
    with pytest.raises(FileNotFoundError):
        read_step_times(tmp_path / "absent")


def test_parts_of_a_page() -> None:
    assert element("p", "<b>", class_="x & y") == '<p class="x &amp; y">&lt;b&gt;</p>'
    assert "<td>" in table(["a"], [["x"]])
    assert [number(value) for value in (12345, 0.123456, 1e-5, float("inf"))] == ["12,345", "0.1235", "1.00e-05", "∞"]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    runs = [open_run(pretraining_run(tmp_path / name)) for name in ("x/run", "y/run")]
    assert run_names(runs) == ["x/run", "y/run"]
    assert run_names(runs[:1]) == ["run"]
    assert len(set(run_names([runs[0], runs[0]]))) == 2


def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    """Without a network, without a message of the browser, and with the curves of both runs in it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from matplotlib.image import imread

    runs = pretraining_run(tmp_path / "a"), pretraining_run(tmp_path / "b", rate=3e-4)
    report(*runs, output=tmp_path / "page.html")
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # in a container there is no user for it
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,1600",
        f"--screenshot={tmp_path / 'page.png'}",
        (tmp_path / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr  # such as a request that the page's policy forbids
    pixels = (imread(tmp_path / "page.png")[..., :3] * 255).round().astype(int)
    for color in COLORS:
        wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
        assert (abs(pixels - wanted).max(axis=-1) < 8).sum() > 200
