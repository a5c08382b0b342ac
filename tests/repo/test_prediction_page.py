"""Runs every command of docs/predict.md, on small models with random weights in place of those that it names."""

import json
from pathlib import Path

import pytest

from deberta_jax.__main__ import main

from ..support.documents import commands
from ..support.paths import REPOSITORY
from ..support.use_models import write_use_model

# Model of the page -> small model with the same head.
MODELS = {
    "protectai/deberta-v3-base-prompt-injection-v2": "nli",
    "runs/essays/model": "nli",
    "MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli": "nli",
    "mixedbread-ai/mxbai-rerank-base-v1": "scorer",
    "OpenAssistant/reward-model-deberta-v3-large-v2": "scorer",
    "iiiorg/piiranha-v1-detect-personal-information": "ner",
    "deepset/deberta-v3-base-squad2": "qa",
    "microsoft/deberta-v3-base": "pretrained",
    "runs/base/generator": "generator",
    "runs/base/discriminator": "discriminator",
}
FILES = {
    "test.csv": "essay_id,full_text,grade\na1,an essay,3\na2,another essay,4\n",
    "essays.jsonl": json.dumps({"text": "a long essay " * 300}) + "\n",
    "tickets.txt": "where is my parcel\nI want my money back\n",
    "documents.txt": "one\ntwo\nthree\nfour\n",
    "queries.jsonl": json.dumps({"query": "who", "documents": ["he", "she", "they", "we"]}) + "\n",
    "answers.jsonl": json.dumps({"prompt": "why", "response": "because"}) + "\n",
    "questions.jsonl": json.dumps({"question": "who", "context": "he and she"}) + "\n",
    "reports.txt": "He wrote it.\nShe did.\n",
}


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "not-read"))  # JAX's settings stay as they are
    for name, kind in MODELS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_use_model(tmp_path / "small", kind).rename(tmp_path / name)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    capsys.readouterr()
    of_page = [words for words in commands(REPOSITORY / "docs" / "predict.md") if words[0] == "predict"]
    assert len(of_page) >= 10
    assert {words[1] for words in of_page} == MODELS.keys()
    for words in of_page:
        assert main(words) == 0, words
        out, _ = capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        if "--output" in words:
            assert not lines
            lines = [json.loads(line) for line in Path(words[words.index("--output") + 1]).read_text().splitlines()]
        assert lines, words
        assert not any("error" in line for line in lines), lines
    assert [json.loads(line)["id"] for line in Path("predictions.jsonl").read_text().splitlines()] == ["a1", "a2"]
