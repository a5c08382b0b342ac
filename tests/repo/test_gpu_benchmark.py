"""Tests tests/benchmarks/gpu: its results, its tables, and that no worker ends the run."""

import dataclasses
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ..benchmarks.gpu import programs
from ..benchmarks.gpu.cases import Case, Result, Work, batch_of, time_rounds
from ..benchmarks.gpu.machine import find_gpu
from ..benchmarks.gpu.report import report
from ..benchmarks.gpu.supervisor import (
    Launch,
    check_same_machine,
    merge,
    read_lines,
    read_results,
    recover,
    run_program,
)
from ..benchmarks.gpu.worker import reason_of
from ..benchmarks.table import write_between
from ..support.paths import REPOSITORY

CASES = ("start:2x32", "step:2x32", "step:1x64", "forward:2x32")
MACHINE = {"card": "NVIDIA H100", "driver": "580", "date": "2026-01-01"}


def work(**changes) -> Work:
    none = Path("unused")
    return dataclasses.replace(Work("ours", CASES, none, none, none, started=0), **changes)


def worker(folder: Path, body: str) -> list[str]:
    """Returns the command of a worker whose cases do this: `name` is the case, `done(milliseconds)` its result."""
    script = folder / "worker.py"
    header = """
        import json, os, signal, sys, time
        work = json.loads(sys.argv[1])
        def write(fields):
            with open(work["lines"], "a") as file:
                file.write(json.dumps(fields) + "\\n")
        for name in work["cases"]:
            write({"begin": name})
            def done(milliseconds):
                write({"program": work["program"], "case": name, "milliseconds": [milliseconds]})
    """
    script.write_text(textwrap.dedent(header) + textwrap.indent(textwrap.dedent(body), "    "))
    return [sys.executable, str(script)]


def outcomes(results: list[Result]) -> list[str]:
    return [result.failure or f"{result.median:g} ms" for result in results]


# -------------------------------------------------------------------- workers


def test_a_crash_costs_one_case(tmp_path: Path) -> None:
    messages: list[str] = []
    body = "if name == 'step:2x32': os.kill(os.getpid(), signal.SIGSEGV)\nprint(name, file=sys.stderr)\ndone(2)"
    launch = Launch(60, command=worker(tmp_path, body), errors=tmp_path / "log")
    results = run_program(work(lines=tmp_path / "lines"), launch, log=messages.append)
    reason = "killed by SIGSEGV: start:2x32"
    assert outcomes(results) == ["2 ms", reason, "2 ms", "2 ms"]
    assert messages == [f"ours: {reason} (see {tmp_path / 'log'})"]
    assert (tmp_path / "log").read_text().split() == ["start:2x32", "step:1x64", "forward:2x32"]


def test_a_case_beyond_the_limit_is_stopped_and_the_others_are_not_run(tmp_path: Path) -> None:
    body = "if name == 'step:2x32': time.sleep(600)\ndone(2)"
    start = time.monotonic()
    results = run_program(work(lines=tmp_path / "lines"), Launch(3, command=worker(tmp_path, body)))
    assert time.monotonic() - start < 60
    left = "not run: over the time limit"
    assert outcomes(results) == ["2 ms", "over the time limit", left, left]


def test_a_process_that_cannot_start_fails_all_cases_with_its_last_line(tmp_path: Path) -> None:
    absent = work(lines=tmp_path / "lines")
    command = [sys.executable, "-c", "raise SystemExit('JAX has no GPU here')"]
    results = run_program(absent, Launch(60, command=command))
    assert outcomes(results) == ["exit status 1: JAX has no GPU here"] * 4
    results = run_program(absent, Launch(60, command=[sys.executable, "-c", ""]))
    assert outcomes(results) == ["the process ended without a result"] * 4


def test_a_line_that_was_cut_short_is_ignored(tmp_path: Path) -> None:
    result = Result("ours", "step:2x32", milliseconds=(1.0, 3.0, 2.0), memory=5, parts={"imports": 1.5})
    file = tmp_path / "lines"
    assert read_lines(file) == (set(), {})
    file.write_text('{"begin": "step:2x32"}\n{"program": "ours", "case": "step:1x64", "mill')
    assert read_lines(file) == ({"step:2x32"}, {})
    merge(tmp_path / "results.json", MACHINE, [result])
    assert read_results(tmp_path / "results.json") == (MACHINE, [result])
    assert result.median == 2


def test_results_of_a_run_that_was_cut_are_recovered(tmp_path: Path) -> None:
    lines = ['{"begin": "step:2x32"}', '{"program": "ours", "case": "step:2x32", "seconds": 2}']
    (tmp_path / "ours.jsonl").write_text("\n".join(lines))
    recover(tmp_path, MACHINE)
    assert read_results(tmp_path / "results.json") == (MACHINE, [Result("ours", "step:2x32", seconds=2)])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_reasons_are_one_line() -> None:
    assert (
        reason_of(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")) == "out of memory"
    )
    assert reason_of(ValueError("CUDA out of memory. Tried to\n  allocate")) == "out of memory"
    assert reason_of(ValueError("two\n lines")) == "ValueError: two lines"


# -------------------------------------------------------------------- results and tables


def test_results_of_parts_are_merged(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    check_same_machine(file, MACHINE)
    merge(file, MACHINE, [Result("ours", "step:2x32", (2.0,)), Result("ours", "step:1x64", failure="out of memory")])
    merge(file, MACHINE, [Result("ours", "step:1x64", (4.0,)), Result("transformers", "step:2x32", (8.0,))])
    _, results = read_results(file)
    assert [(result.program, result.case, result.milliseconds) for result in results] == [
        ("ours", "step:2x32", (2.0,)),
        ("ours", "step:1x64", (4.0,)),
        ("transformers", "step:2x32", (8.0,)),
    ]
    check_same_machine(file, MACHINE | {"date": "2026-01-02"})
    with pytest.raises(SystemExit, match=r"results of another card, jax; choose another folder with --results"):
        check_same_machine(file, MACHINE | {"card": "NVIDIA A100", "jax": "1"})


def test_report_has_a_row_for_each_case_and_program() -> None:
    results = [
        Result("golden", "golden:sift"),
        Result("golden", "golden:encoder_v3", failure="layer 1: differs by 2.00e-01, of 3.00e+00 (6.7e-02)"),
        Result("ours", "error:4x512", difference=4e-3),
        Result("transformers", "error:4x512", difference=4e-2),
        Result("ours-pallas", "gradients:4x512", difference=0.5),
        Result("ours", "start:32x512", seconds=40.25, parts={"imports": 5.0}),
        Result("ours", "warm:32x512", seconds=12.0),
        Result("flashdeberta", "step:32x512", (122.0, 121.0, 140.0), memory=9_600_000_000),
        Result("ours-pallas", "step:32x512", failure="out of memory"),
        Result("ours", "step:32x512", (100.0, 128.0, 90.0), memory=7_700_000_000),
        Result("ours", "forward:4x4096", (50.0,), memory=1_000_000_000),
    ]
    lines = report(MACHINE, results, dry_run=False).splitlines()
    assert lines[0] == "card NVIDIA H100, driver 580, date 2026-01-01."
    assert "* Golden cases, float32 with highest precision: 1 of 2 within 1e-4." in lines
    assert "  * encoder_v3: layer 1: differs by 2.00e-01, of 3.00e+00 (6.7e-02)" in lines
    errors = [line for line in lines if "Relative error" in line]
    assert errors[0].endswith("deberta-jax: 4.0e-03.")
    assert errors[1].endswith("transformers (eager): 4.0e-02, more than the 0.03 that is allowed.")
    assert errors[2].endswith(
        "against plain XLA in float32, deberta-jax (pallas): 5.0e-01, more than the 0.05 that is allowed."
    )
    assert [line for line in lines if line.startswith(("| forward", "| training step |"))] == [
        "| forward | 4 x 4096 | deberta-jax | 50.0 | 50.0 to 50.0 | 327,680 | 1.0 |",
        "| training step | 32 x 512 | deberta-jax | 100.0 | 90.0 to 128.0 | 163,840 | 7.7 |",
        "| training step | 32 x 512 | deberta-jax (pallas) | out of memory | - | - | - |",
        "| training step | 32 x 512 | FlashDeBERTa | 122.0 | 121.0 to 140.0 | 134,295 | 9.6 |",
    ]
    assert "| deberta-jax | 40.2 | 12.0 | imports 5.0 |" in lines
    assert lines[-1] == "FlashDeBERTa has no dropout of attention probabilities."
    assert report(MACHINE, results, dry_run=True).startswith("**Dry run")


def test_only_the_text_between_the_marks_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end -->\nafter\n")
    write_between(page, "<!-- a -->", "<!-- end -->", ["new"])
    assert page.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- end -->\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must contain <!-- a --> and <!-- end --> once each"):
        write_between(page, "<!-- a -->", "<!-- end -->", ["new"])


def test_page_has_the_marks() -> None:
    text = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert text.count("<!-- tests.benchmarks.gpu -->") == text.count("<!-- end -->") == 1


# -------------------------------------------------------------------- cases


@pytest.mark.parametrize("text", ["step", "step:32", "step:0x512", "stop:32x512", "step:32x512x2", "step:ax b"])
def test_case_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="such as step:32x512"):
        Case.parse(text)


def test_rows_are_full_where_speed_is_measured_and_ragged_where_errors_are() -> None:
    assert Case.parse("step:32x512").shape == (32, 512)
    assert batch_of(Case("step", "4x16"), 60)["attention_mask"].min() == 1
    ragged = batch_of(Case("error", "4x16"), 60)
    assert ragged["attention_mask"].sum(axis=1).tolist() == [16, 14, 12, 10]
    assert ((ragged["input_ids"] > 0) == ragged["attention_mask"]).all()


def test_rounds_are_means_of_calls_that_are_awaited_together() -> None:
    calls, waits = [], []
    rounds = time_rounds(lambda: calls.append(time.sleep(0.002)), lambda: waits.append(len(calls)), dry_run=False)
    assert len(rounds) == 10
    assert len(waits) == 3 + 10
    assert len(calls) - waits[2] == 10 * (waits[3] - waits[2])
    assert all(milliseconds >= 2 for milliseconds in rounds)


def test_peers_that_are_missing_are_named_with_their_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert programs.missing("ours", dry_run=False) == ""
    assert "needs an NVIDIA GPU" in programs.missing("flashdeberta", dry_run=True)
    assert "needs an NVIDIA GPU" in programs.missing("ours-pallas", dry_run=True)
    assert programs.missing("ours-pallas", dry_run=False) == ""
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None if name == "flashdeberta" else name)
    reason = programs.missing("flashdeberta", dry_run=False)
    assert reason == "flashdeberta not installed: pip install --no-deps flashdeberta==0.0.8"


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"no NVIDIA GPU found: .*--dry-run"):
        find_gpu()


@pytest.mark.slow
def test_dry_run_prints_every_part_and_writes_nothing() -> None:
    before = {path: path.stat().st_mtime for path in (REPOSITORY / "docs").iterdir()}
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--dry-run"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "**Dry run" in done.stdout
    assert "7 of 7 within 1e-4" in done.stdout
    assert "FlashDeBERTa is left out: needs an NVIDIA GPU" in done.stdout
    lines = done.stdout.splitlines()
    assert sum(line.startswith("| forward |") and "| deberta-jax |" in line for line in lines) == 3
    assert sum(line.startswith("| training step |") and "| deberta-jax |" in line for line in lines) == 3
    assert not any(word in done.stdout for word in ("Error", "out of memory", "killed"))
    assert before == {path: path.stat().st_mtime for path in (REPOSITORY / "docs").iterdir()}
