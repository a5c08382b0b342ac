"""Commands whose paths are addresses of a real server for s3://, which fails for a while, and runs that are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deberta_jax import load_pretrained, stores
from deberta_jax.__main__ import main as command_line
from deberta_jax.errors import UserError
from deberta_jax.mirrors import local_copy
from deberta_jax.train.data.prepare import prepare

from ..support.killed_prepare import MOMENTS, SETTINGS, killed_prepare, use_small_tasks
from ..support.s3_server import Fault, S3Server, s3_server
from ..support.small_corpus import Words, contents, story, write
from ..support.small_models import TINY
from ..support.store_files import check_files

pytest.importorskip("moto", reason="the server for s3:// needs moto[server]")
pytest.importorskip("s3fs", reason="s3:// needs s3fs")

STEPS = 6
pytestmark = pytest.mark.filterwarnings("ignore")  # of moto and botocore


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        stores._system.cache_clear()
        yield server
    stores._system.cache_clear()
    assert not (tmp_path / "s3:").exists()


def test_files_are_written_listed_read_and_removed(server: S3Server, tmp_path: Path):
    check_files("s3://bucket/folder", tmp_path)


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_server_that_fails_for_a_while_is_waited_for(
    server: S3Server, caplog: pytest.LogCaptureFixture, fault: Fault
):
    stores.write("s3://bucket/a", b"1")
    slept: list[float] = []

    def repaired(seconds: float) -> None:
        slept.append(seconds)
        server.fault = None if len(slept) == 2 else server.fault

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores.time, "sleep", repaired)
        server.fault = fault
        assert stores.read("s3://bucket/a") == b"1"
    assert slept == [1.0, 2.0]
    assert server.failed >= 2
    assert caplog.text.count("s3://bucket/a does not answer") == 1


@pytest.mark.parametrize("command", ["prepare", "tokenizer", "pretrain", "finetune", "convert", "export", "predict"])
def test_a_bucket_that_does_not_exist_is_one_line_before_any_work(
    server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
):
    (tmp_path / "a.txt").write_text("text\n\nmore\n")
    output = ["--output", "s3://none/folder/x.jsonl" if command == "predict" else "s3://none/folder"]
    words = {
        "prepare": [*output, "--tokenizer", "deberta-v3-tiny", "--text", "a.txt"],
        "tokenizer": [*output, "--text", "a.txt"],
        "pretrain": [*output, "--tokenizer", "t", "--text", "a.txt"],
        "finetune": [*output, "--model", "m", "--train", "a.csv"],
        "convert": ["m", "s3://none/folder"],
        "export": ["m", "s3://none/folder"],
        "predict": ["deberta-v3-tiny", "a.txt", *output],
    }
    assert command_line([command, *words[command]]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"deberta-jax {command}: cannot write s3://none"), error
    assert "no such file or bucket" in error
    assert error.count("\n") == 1


def _start(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "deberta_jax", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 1200  # only ends a hang
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != "move, in the middle"])
def test_a_preparation_that_is_killed_is_continued_with_the_same_bytes(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    use_small_tasks(monkeypatch)
    text = write(tmp_path / "a.txt", story(50))
    expected = contents(prepare([text], Words(), tmp_path / "unbroken", **SETTINGS).folder)
    killed_prepare(moment, text, "s3://bucket/rows")
    assert "manifest.json" not in stores.names("s3://bucket/rows")
    prepare([text], Words(), "s3://bucket/rows", **SETTINGS)
    assert {name: stores.read(f"s3://bucket/rows/{name}") for name in stores.names("s3://bucket/rows")} == expected
    assert stores.names("s3://bucket") == ["rows"]


def _losses(content: bytes) -> dict[int, float]:
    records = map(json.loads, filter(None, content.decode().split("\n")))
    return {record["step"]: record["generator_loss"] for record in records if "generator_loss" in record}


@pytest.mark.slow
def test_a_run_that_is_killed_loses_nothing_and_continues_on_another_machine(
    server: S3Server, tmp_path: Path, novel: Path, monkeypatch: pytest.MonkeyPatch
):
    for path in [novel / "text.txt", *(novel / "tokenizer").iterdir()]:
        stores.put_file(path, f"s3://bucket/{path.relative_to(novel).as_posix()}")
    stores.write("s3://bucket/model.json", json.dumps(TINY.to_json()).encode())
    tokenizer = ("--tokenizer", "s3://bucket/tokenizer")
    length = ("--sequence-length", "32")
    rows = ("--held-out-fraction", "0.05", "--workers", "1")
    text = ("--text", "s3://bucket/text.txt")
    _finish(_start("prepare", "--output", "s3://bucket/rows", *text, *tokenizer, *length, *rows))
    assert "manifest.json" in stores.names("s3://bucket/rows")
    words = [
        *("pretrain", "--output", "s3://bucket/run", "--corpus", "s3://bucket/rows", *tokenizer, *length),
        *("--model", "s3://bucket/model.json", "--steps", str(STEPS), "--batch-size", "8", "--log-every", "1"),
        *("--save-every", "2", "--evaluate-every", "0"),
    ]
    first = _start(*words)
    _wait_until(lambda: stores.exists("s3://bucket/run/checkpoints/2/_COMPLETE"), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = _losses((tmp_path / "cache/stores/s3/bucket/run/metrics.jsonl").read_bytes())

    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "other"))
    second = _start(*words)
    _wait_until((tmp_path / "other/stores/s3/bucket/run").exists, second)
    server.fault = "503"  # for a while
    time.sleep(5)
    server.fault = None
    output = _finish(second)
    step = int(re.search(r"^resumed after step (\d+)$", output, re.M)[1])  # pyright: ignore
    assert 2 <= step < STEPS
    after = _losses(stores.read("s3://bucket/run/metrics.jsonl"))
    assert list(after) == list(range(1, STEPS + 1))
    assert before == {step: loss for step, loss in after.items() if step in before}
    config, params = load_pretrained(local_copy("s3://bucket/run/discriminator"))
    assert config.hidden_size == TINY.hidden_size
    assert params
    with pytest.raises(UserError, match="no such file or folder"):
        local_copy("s3://bucket/run/none")
