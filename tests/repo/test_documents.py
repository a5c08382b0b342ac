"""Runs the code of the documents: Python blocks, and the shell blocks marked `bash`; builds the site.

A fence names what is done with it. `python` blocks of a page run one after the other. `bash` blocks run in a shell, in
a folder of their own. Models and data of `sh` blocks are not here, so test_readme.py checks their commands and options.
`text` is output or a figure.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from deberta_jax.__main__ import main

from ..support.documents import DOCUMENTS, README, blocks
from ..support.paths import REPOSITORY
from ..support.use_models import write_use_model

LANGUAGES = {"python", "bash", "sh", "text", "json", "yaml"}
# Page -> models that its Python names, and the small model with the same head.
MODELS = {
    "predict.md": {
        "runs/sst2": "nli",
        "cross-encoder/nli-deberta-v3-base": "nli",
        "my-reranker": "scorer",
        "my-nli-model": "nli",
        "runs/ner": "ner",
        "runs/squad2": "qa",
        "microsoft/deberta-v3-base": "pretrained",
    },
    "serving.md": {"MODEL": "nli"},
}
ELSEWHERE = {"serving.md": ("import torch", "import onnxruntime")}  # convert/test_onnx.py runs these
SERVICE = "serve_forever()"


def pages_with(language: str) -> list:
    """Returns the pages with fences of a language; all but the first that a user reads are slow."""
    return [
        pytest.param(document, id=document.name, marks=[] if document.name == "index.md" else pytest.mark.slow)
        for document in DOCUMENTS
        if document != README and blocks(document, language)  # test_readme.py runs that of README.md
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_says_what_it_is(document: Path) -> None:
    fences = re.findall(r"^```(.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert set(fences[0::2]) <= LANGUAGES, "a block has no language, or one that no test knows"
    assert set(fences[1::2]) <= {""}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "not-read"))  # JAX's settings stay as they are
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize("document", pages_with("python"))
def test_python_of_a_page_runs(document: Path, folder: Path) -> None:
    for name, kind in MODELS.get(document.name, {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_use_model(folder / "small", kind).rename(folder / name)
    if document.name == "predict.md":
        (folder / "test.csv").write_text("id,text\n1,a text\n", encoding="utf-8")
        assert main(["predict", "runs/sst2", "test.csv", "--id-column", "id", "--output", "predictions.jsonl"]) == 0
    if document.name == "serving.md":
        command = ["serialize", "MODEL", "served", "--batch-size", "1", "--length", "4", "--platforms", "cpu"]
        assert main(command) == 0
    code = [
        block
        for block in blocks(document, "python")
        if SERVICE not in block and not any(words in block for words in ELSEWHERE.get(document.name, ()))
    ]
    names: dict = {"__name__": document.name}
    try:
        for block in code:
            exec(compile(block, document.name, "exec"), names)
    finally:
        sys.modules.pop("load", None)
    if document.name == "from-pytorch.md":
        assert sum(names["losses"][-3:]) < 0.9 * sum(names["losses"][:3])
    if document.name == "mathematics.md":
        assert names["rows"].tolist()[:3] == [1, 127, 128]


@pytest.mark.slow
def test_the_service_answers(folder: Path) -> None:
    (code,) = (block for block in blocks(REPOSITORY / "docs" / "serving.md", "python") if SERVICE in block)
    write_use_model(folder, "nli")
    assert main(["serialize", "nli", "served"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "served" / "service.py").write_text(code.replace("8000", str(port)), encoding="utf-8")
    request = json.dumps({"input_ids": [[1, 5, 2]], "attention_mask": [[1, 1, 1]]}).encode()
    with subprocess.Popen([sys.executable, "service.py"], cwd=folder / "served", stderr=subprocess.DEVNULL) as service:
        try:
            for _ in range(240):
                assert service.poll() is None
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}", request, timeout=60) as answer:
                        outputs = json.load(answer)
                    break
                except OSError:
                    time.sleep(0.25)
        finally:
            service.kill()
    assert len(outputs["logits"][0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("document", pages_with("bash"))
def test_commands_of_a_page_run(document: Path, folder: Path) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "JAX_PLATFORMS": "cpu",
    }
    for block in blocks(document, "bash"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`; `make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "attention" in (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
