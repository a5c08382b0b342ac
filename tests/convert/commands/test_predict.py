"""`deberta-jax predict` on the command line: every use, and one line for every mistake."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.__main__ import main
from deberta_jax.convert.commands.prediction.output import StandardOutput

from ...support.pseudo_terminal import pseudo_terminal
from ...support.use_models import write_use_model

CLASSES = {"label", "probability", "labels", "probabilities", "windows"}
ANSWER = {"text", "start", "end", "score", "no_answer_score", "candidates", "windows", "notes"}
NAMES = ("nli", "scorer", "ner", "qa", "generator", "discriminator", "pretrained", "encoder")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("uses")
    return {name: str(write_use_model(home, name)) for name in NAMES}


Predict = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def predict(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Predict:
    """Runs the command on a model and returns its lines."""

    def run(model: str, *arguments: object, status: int = 0) -> list[dict[str, Any]]:
        assert main(["predict", models[model], *map(str, arguments)]) == status
        out, run.errors = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()]

    return run


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("model", "arguments", "keys"),
    [
        ("nli", ["a plain text"], CLASSES),
        ("nli", ["a premise", "--pair", "a hypothesis"], CLASSES),
        ("nli", ["it rains", "--labels", "sun", "rain"], CLASSES),
        ("scorer", ["a plain text"], {"score"}),
        ("scorer", ["a document", "--query", "a query"], {"rank", "score", "text"}),
        ("ner", ["He lives here"], {"entities"}),
        ("qa", ["He lives here.", "--question", "Where?"], ANSWER),
        ("generator", ["He [MASK] here"], {"masks"}),
        ("discriminator", ["He lives here"], {"tokens"}),
        ("pretrained", ["He lives here", "--task", "detect"], {"tokens"}),
        ("encoder", ["He lives here"], {"vector", "windows"}),
    ],
)
def test_the_head_or_an_option_decides_the_use(
    predict: Predict, model: str, arguments: list[str], keys: set[str]
) -> None:
    (line,) = predict(model, *arguments)
    assert line.keys() == {"row", "input", *keys}
    assert (line["row"], line["input"]) == (0, arguments[0])


def test_rows_of_columns_become_items(predict: Predict, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.csv", "id,sentence1,sentence2", 'a7,"one, two",three', "a8,four,five")
    lines = predict("nli", pairs, "--top-k", 1)
    assert [(line["row"], line["id"], len(line["probabilities"])) for line in lines] == [(0, "a7", 1), (1, "a8", 1)]
    assert "pairs.csv: reading 'sentence1', 'sentence2'" in predict.errors
    (line,) = predict("qa", write(tmp_path / "q.jsonl", {"question": "who?", "context": "he and she"}))
    assert line["text"] == "he and she"[line["start"] : line["end"]]
    choice = write(tmp_path / "c.jsonl", {"prompt": "one", "choices": ["two", "three"], "n": 1})
    (line,) = predict("scorer", choice, "--task", "choose", "--copy-input")
    assert line["input"] == {"prompt": "one", "choices": ["two", "three"], "n": 1}
    assert line["text"] == ["two", "three"][line["index"]]
    (line,) = predict("ner", write(tmp_path / "w.jsonl", {"words": ["He", "lives", "here"]}))
    assert all("word_start" in entity for entity in line["entities"])
    documents = write(tmp_path / "r.jsonl", {"query": "one", "documents": ["two", "three", "four"]})
    (line,) = predict("scorer", documents, "--task", "rank", "--top-k", 2)
    first, second = line["ranking"]
    assert first["score"] >= second["score"]


def test_one_query_ranks_all_rows(predict: Predict, tmp_path: Path) -> None:
    texts = write(tmp_path / "d.txt", "one", "two and three", "four five six seven")
    scores = {line["row"]: line["score"] for line in predict("scorer", texts, "--query", "one")}
    ranked = predict("scorer", texts, "--query", "one", "--top-k", 2)
    assert [line["row"] for line in ranked] == sorted(scores, key=lambda row: -scores[row])[:2]
    assert [line["rank"] for line in ranked] == [1, 2]


def test_standard_input_is_the_default(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one two\nthree\n")))
    assert [line["row"] for line in predict("scorer")] == [0, 1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert predict("nli", "--labels", "sun", "texts.txt", status=1) == []
    assert "standard input has no rows; give files or texts after MODEL and before the options" in predict.errors


def test_a_program_that_writes_a_text_and_waits_gets_its_answer(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    texts, answered = [b"one two\nthree\n\n", b"four\n", b"five"], []

    def write_next(output: StandardOutput, line: str) -> None:
        answered.append(json.loads(line)["row"])
        if len(answered) in (2, 3):
            os.write(writer, texts.pop(0))
        if len(answered) == 3:
            os.close(writer)

    monkeypatch.setattr(StandardOutput, "write", write_next)
    os.write(writer, texts.pop(0))
    with open(reader) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        predict("nli", "--skip-bad")
    assert answered == [0, 1, 2, 3, 4]


def test_several_files_are_told_apart(predict: Predict, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", "one"), write(tmp_path / "b.csv", "sentence", "two")
    lines = predict("scorer", first, second)
    assert [(line["file"], line["row"]) for line in lines] == [(str(first), 0), (str(second), 0)]


def test_bad_rows_stop_the_run_after_the_rows_before_them(predict: Predict, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", {"text": "one"}, '{"text": ', {"text": 3}, {"text": "four"})
    assert [line["row"] for line in predict("scorer", rows, status=1)] == [0]
    assert predict.errors.startswith(f"deberta-jax predict: {rows}, line 2: not JSON (")
    assert predict.errors.endswith("; add --skip-bad to continue after such rows\n")
    assert predict.errors.count("\n") == 1
    lines = predict("scorer", rows, "--skip-bad")
    assert [(line["row"], "error" in line) for line in lines] == [(0, False), (1, True), (2, True), (3, False)]
    first, second = predict.errors.split("2 rows could not be used:\n")[1].splitlines()
    assert "line 2: not JSON (" in first
    assert second == f"  {rows}, line 3: column 'text' holds 3, not text"


def test_a_row_that_the_model_cannot_use_is_named(predict: Predict, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.txt", "a [MASK]", "no mask", "another [MASK]")
    assert len(predict("generator", rows, status=1)) == 1
    assert f"{rows}, line 2: no [MASK] in 'no mask'" in predict.errors
    assert [sorted(line) for line in predict("generator", rows, "--skip-bad")] == [
        ["masks", "row"],
        ["error", "row"],
        ["masks", "row"],
    ]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("pretrained", ["x"], "has mlm_head, rtd_head: choose --task fill-mask or detect"),
        ("nli", ["x", "--task", "answer", "--question", "y"], "has no span_classifier; it has "),
        ("ner", ["x", "--task", "classify"], "has no pooler; it has "),
        (
            "scorer",
            ["x", "--task", "classify", "--template", "y"],
            "--template has no effect on the task classify; its",
        ),
        (
            "scorer",
            ["x", "--task", "score", "--query", "y"],
            "--query has no effect on the task score; it belongs",
        ),
        ("scorer", ["x", "--labels", "a", "b"], "needs a model of natural language inference"),
        ("qa", ["x"], "no column 'question'; the columns are 'text': name one with --question-column or --question"),
        ("nli", ["missing.csv"], "missing.csv: no such file; if it is a text, pass it by standard input"),
        ("nli", ["x", "--output", "x.csv"], "x.csv: predictions are written as JSON Lines; give a name that"),
        ("nli", ["x", "--output", "no/such/x.jsonl"], "there is no folder no/such; give a file as --output"),
        ("nli", ["x", "--top-k", "0"], "top_k is 0; it must be at least 1"),
        ("nli", ["x", "--task", "zero-shot"], "the task zero-shot needs --labels, the classes to choose from"),
        ("nli", ["x", "--id-column", "key"], "no column 'key'; the columns are 'text': name one with --id-column"),
        ("nli", ["-", "-"], "standard input (-) is given twice"),
    ],
)
def test_a_mistake_is_one_line(predict: Predict, model: str, arguments: list[str], message: str) -> None:
    assert predict(model, *arguments, status=1) == []
    assert message in predict.errors
    assert predict.errors.count("\n") == 1


def test_a_column_that_is_missing_ends_the_run_in_spite_of_skip_bad(predict: Predict, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.csv", "title,body_text", "a,b")
    predict("scorer", rows, "--skip-bad", status=1)
    assert (
        "line 2: no column 'text'; the columns are 'title', 'body_text': name one with --text-column" in predict.errors
    )


def test_a_terminal_shows_tables(models: dict[str, str]) -> None:
    expected = {
        ("nli", "one text"): "neutral",
        ("nli", "one text", "another"): "another",
        ("scorer", "one text"): "score",
        ("scorer", "one text", "two", "--query", "q"): "rank",
        ("ner", "He lives here"): "entity",
        ("encoder", "He lives here"): "vector",
    }
    for (model, *arguments), word in expected.items():
        with pseudo_terminal(TERM="dumb", COLUMNS="100") as screen:
            assert main(["predict", models[model], *arguments]) == 0
        assert word in screen.text
        assert "{" not in screen.text
    with pseudo_terminal(TERM="dumb", COLUMNS="100") as screen:
        assert main(["predict", models["scorer"], "one text", "--json"]) == 0
    assert json.loads(screen.text)["row"] == 0


def test_a_terminal_shows_the_progress_of_files(models: dict[str, str], tmp_path: Path) -> None:
    rows = write(tmp_path / "a.txt", *["some words"] * 50)
    with pseudo_terminal(TERM="xterm", COLUMNS="100") as screen:
        assert main(["predict", models["scorer"], str(rows), "--output", str(tmp_path / "x.jsonl")]) == 0
    assert " rows \x1b" in screen.text or " rows ━" in screen.text
    assert "\\x1b" not in screen.text
    assert screen.text.endswith(f"50 rows in {tmp_path / 'x.jsonl'}\n")


def test_a_reader_that_ends_early_is_no_error(models: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return 1

    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr("deberta_jax.convert.commands.prediction.output.discard", lambda stream: None)
    with pytest.raises(SystemExit) as ended:
        main(["predict", models["scorer"], "one"])
    assert ended.value.code == 0
    assert capfd.readouterr().err == ""


def test_lists_of_documents_point_to_the_task_that_orders_them(predict: Predict, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", '{"query": "q", "documents": ["a", "b"]}')
    predict("scorer", rows, status=1)
    assert "column 'documents' has a list of documents; order them with --task rank" in predict.errors
