"""`deberta-jax predict` on long files: killed and started again, in bounded memory."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.__main__ import main
from deberta_jax.convert.commands.prediction.output import OutputFile

from ...support.use_models import write_use_model


def write_rows(path: Path, count: int) -> Path:
    """Writes short random texts; their ids are their numbers."""
    rng, words = random.Random(0), "the man of this house was never seen again by her or his dear sister".split()
    rows = ({"id": i, "text": " ".join(rng.choices(words, k=rng.randint(2, 30)))} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(model: Path, rows: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deberta_jax", "predict", str(model), str(rows), "--output", str(output)]
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "DEBERTA_JAX_CACHE": str(model.parent / "cache")}
    own["JAX_COMPILATION_CACHE_DIR"] = ""
    return subprocess.Popen(command, env=os.environ | own, stderr=subprocess.DEVNULL)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_at(process: subprocess.Popen[bytes], output: Path, written: int) -> bool:
    """Kills a run when it has written so many bytes. Returns whether it was killed and not complete before."""
    partial = output.with_name(f"{output.name}.partial")
    while process.poll() is None and size(partial) < written:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_equal_results(resumed: Path, whole: Path, count: int) -> None:
    """Asserts that both have every row once and in order, and the same numbers.

    Rounding depends on which other rows are in a batch, and a resumed run has other batches.
    """
    first, second = results(resumed), results(whole)
    assert [row["id"] for row in first] == [row["row"] for row in first] == list(range(count))
    assert [row["id"] for row in second] == list(range(count))
    for a, b in zip(first, second, strict=True):
        assert a["label"] == b["label"]
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)


def test_a_stopped_run_goes_on_after_its_last_line(tmp_path: Path, monkeypatch, capsys) -> None:
    model, rows = write_use_model(tmp_path, "nli"), write_rows(tmp_path / "rows.jsonl", 1500)
    arguments = ["predict", str(model), str(rows), "--output"]
    assert main([*arguments, str(tmp_path / "whole.jsonl")]) == 0
    output, partial = tmp_path / "x.jsonl", tmp_path / "x.jsonl.partial"
    write, written = OutputFile.write, 0

    def interrupted(self: OutputFile, line: str) -> None:
        nonlocal written
        write(self, line)
        written += 1
        if written % 600 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(OutputFile, "write", interrupted)
    for kept in (599, 1190):
        assert main([*arguments, str(output)]) == 130
        content = partial.read_bytes().splitlines(keepends=True)
        partial.write_bytes(b"".join(content[:kept]) + content[kept][:50])  # as a process leaves it that is killed
        assert not output.exists()
    errors = capsys.readouterr().err
    assert "run the same command again to continue" in errors
    assert "599 rows done before" in errors
    assert main([*arguments, str(output), "--top-k", "1"]) == 1
    assert (
        "x.jsonl.partial was written without --top-k, not with 1; repeat the first command" in capsys.readouterr().err
    )
    assert main([*arguments, str(output)]) == 0
    assert_equal_results(output, tmp_path / "whole.jsonl", 1500)
    assert {path.name for path in tmp_path.iterdir()} == {"nli", "rows.jsonl", "x.jsonl", "whole.jsonl"}


@pytest.mark.slow
def test_a_long_file_is_killed_often_and_takes_little_memory(tmp_path: Path) -> None:
    model, output, count = write_use_model(tmp_path, "nli"), tmp_path / "x.jsonl", 100_000
    rows, few = write_rows(tmp_path / "rows.jsonl", count), write_rows(tmp_path / "few.jsonl", count // 10)

    def megabytes(rows: Path, output: Path) -> float:
        """Runs to the end and returns the largest memory of the process."""
        process = start(model, rows, output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss / 1024

    megabytes(few, tmp_path / "compiled.jsonl")  # compiling takes memory, too
    assert any((tmp_path / "cache" / "compiled").glob("*/*"))
    small, large = megabytes(few, tmp_path / "few.out.jsonl"), megabytes(rows, tmp_path / "whole.jsonl")
    assert large < small + 50, f"{count // 10:,} rows: {small:.0f} MB, {count:,} rows: {large:.0f} MB"
    rng, total, kills = random.Random(time.time_ns()), size(tmp_path / "whole.jsonl"), 0
    for share in sorted(rng.uniform(0, 0.95) for _ in range(6)):
        kills += kill_at(start(model, rows, output), output, int(share * total))
    assert kills == 6
    megabytes(rows, output)
    assert_equal_results(output, tmp_path / "whole.jsonl", count)
    print(f"{count // 10:,} rows: {small:.0f} MB; {count:,} rows: {large:.0f} MB; killed {kills} times")
