"""Commands under a real terminal: no control character of a text, a name or an option reaches it."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from deberta_jax import DebertaForSequenceClassification, Tokenizer, save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.terminal import printable

from ..support.hostile_texts import MARKUP, SEQUENCES
from ..support.predictor import random_predictor
from ..support.pseudo_terminal import pseudo_terminal
from ..support.small_models import TINY, random_params

NAME = "\x1b]0;title\x07 \x1b[31m\x9b2J\u202e\r\b\x7f :smile:"  # may be the name of a file
TEXT = " ".join(text for text in SEQUENCES if not re.search("[\ud800-\udfff]", text))
PLAIN = {"TERM": "dumb", "NO_COLOR": "1"}
COLORS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hostile name, which holds a model with both pre-training heads."""
    folder = tmp_path_factory.mktemp("home") / NAME
    model = random_predictor()
    save_pretrained(folder / "model", model.config, model.params)
    model.tokenizer.save(folder / "model")
    return folder


def assert_clean(shown: str) -> None:
    assert printable(shown, lines=True) == shown


@pytest.mark.parametrize("environment", [PLAIN, {"TERM": "xterm-256color"}], ids=["dumb", "colors"])
@pytest.mark.parametrize("command", ["fill-mask", "detect"])
def test_predictions_are_printable_and_literal(home: Path, command: str, environment: dict[str, str]) -> None:
    text = f"{MARKUP} {TEXT}" if command == "detect" else ":smile: [red]x[/red] \x1b]0;title\x07 [MASK]"
    with pseudo_terminal(**environment) as screen:
        status = main([command, str(home / "model"), text])
    assert status == 0, screen.text
    shown = COLORS.sub("", screen.text) if environment != PLAIN else screen.text
    assert_clean(shown)
    words = " ".join(shown.split())
    assert r"\x1b]0;title\x07" in words
    if command == "detect":
        assert MARKUP in words
    else:
        assert ":smile: [red]x[/red]" in words
        assert words.startswith("warning: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [NAME],
        ["fill-mask", "{home}", "text"],
        ["fill-mask", "{home}/model", f"no mask {TEXT}"],
        ["fill-mask", "{home}/model", f"[MASK] {TEXT}", "--filename", NAME],
        ["fill-mask", "{home}/model", "[MASK]", "--top-k", NAME],
        ["detect", NAME, "text"],
        ["convert", "{home}", NAME],
        ["convert", f"owner/{NAME}", "{home}/x"],
        ["export", "{home}/nothing", NAME],
        ["verify", "{home}"],
        ["prepare", "--text", "{home}/nothing.txt", "--tokenizer", "{home}/model", "--output", "{home}/corpus"],
        ["prepare", "--text", "{home}", "--tokenizer", NAME, "--output", "{home}/corpus"],
        ["tokenizer", "--text", "{home}/" + NAME, "--output", "{home}/t"],
        ["pretrain", "--tokenizer", "{home}/model", "--output", "{home}/run", "--text", NAME],
        ["pretrain", "--tokenizer", "{home}/model", "--output", "{home}/run", "--objective", NAME],
        ["finetune", "--model", "{home}/model", "--output", "{home}/run", "--train", NAME],
        ["finetune", "--model", "{home}/model", "--output", "{home}/run", "--train", "tfds:" + NAME],
        ["finetune", "--model", "{home}/model", "--output", "{home}/run", "--train", "a.tsv", "--labels", NAME],
        ["finetune", f"--{NAME}", NAME],
        ["recipe", NAME],
        ["recipe", "sst2/v3-small", NAME],
        ["compile-ahead", "--topology", NAME],
        ["compile-ahead", "--model", NAME],
    ],
    ids=lambda arguments: arguments[0].replace(NAME, "command") + "-" + str(len(arguments)),
)
def test_mistakes_are_short_and_printable(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pseudo_terminal(**PLAIN) as screen:
        try:
            status = main([argument.replace("{home}", str(home)) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
    assert status in (1, 2)
    assert_clean(screen.text)
    assert "Traceback" not in screen.text
    assert len(screen.text) < 8000


def test_what_other_libraries_print_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    from deberta_jax.train import demo

    def talk(_: object) -> None:
        logging.getLogger("absl").warning("log of %s", TEXT)
        sys.stderr.write(f"100 %\r{TEXT}\n")

    monkeypatch.setattr(demo, "main", talk)
    handler = logging.StreamHandler()
    with pseudo_terminal(**PLAIN) as screen:
        handler.setStream(sys.stderr)  # from before the command
        logging.root.addHandler(handler)
        try:
            assert main(["demo"]) == 0
        finally:
            logging.root.removeHandler(handler)
    assert_clean(screen.text.replace("\r", ""))
    assert screen.text.count(r"\x1b]0;title\x07") == 2


def test_a_bug_shows_its_traceback_printably(monkeypatch: pytest.MonkeyPatch) -> None:
    from deberta_jax.train import demo

    def fail(_: object) -> None:
        raise ValueError(TEXT + "\ud800" + "long " * 1_000_000)

    monkeypatch.setattr(demo, "main", fail)
    with pseudo_terminal(**PLAIN) as screen:
        assert main(["demo"]) == 1
    assert_clean(screen.text)
    assert "Traceback" in screen.text
    assert len(screen.text) < 8000


@pytest.mark.slow
def test_training_on_hostile_names_is_printable(home: Path, tmp_path: Path) -> None:
    """The names of files and classes. The predictions have them as they are."""
    labels = [f"{NAME}\n{MARKUP}{number}" for number in range(3)]
    rows = [{"text": f"{TEXT} word {number}", "label": labels[number % 3]} for number in range(12)]
    for name in ("train", "validation"):
        (tmp_path / f"{name}{NAME}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    config = TINY.replace(num_labels=4, label_names=("x", *labels[:2], "y"))
    params = random_params(DebertaForSequenceClassification(config), jnp.ones((1, 8), jnp.int32))
    save_pretrained(tmp_path / NAME, config, params)
    Tokenizer.from_folder(home / "model").save(tmp_path / NAME)
    options = {
        "train": f"train{NAME}.jsonl",
        "validation": f"validation{NAME}.jsonl",
        "model": NAME,
        "output": "r" + NAME,
    }
    arguments = [part for name, path in options.items() for part in (f"--{name}", str(tmp_path / path))]
    with pseudo_terminal(**PLAIN) as screen:
        assert main(["finetune", *arguments, "--steps", "1", "--batch-size", "8", "--max-length", "64"]) == 0
    assert_clean(screen.text)
    assert "classifier random" in screen.text
    lines = (tmp_path / ("r" + NAME) / "predictions" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["label"] for line in lines] == [row["label"] for row in rows]
    assert [json.loads(line)["text"] for line in lines] == [row["text"] for row in rows]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_of_the_output_takes_any_text(encoding: str) -> None:
    program = "from deberta_jax.__main__ import main; main(['日本\\ud800'])"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONIOENCODING": encoding}, capture_output=True, check=True
    )
    assert rb"no command '\u65e5\u672c\ud800'" in done.stderr
