"""Tests tests/benchmarks/weak_scaling.py: its table, its plot, and that an interrupted run resumes."""

from pathlib import Path

import pytest

from deberta_jax.train.compile_ahead.command import CompileAheadConfig

from ..benchmarks import weak_scaling
from ..benchmarks.weak_scaling import Case, Row, plot, table
from ..support.compile_reports import make_report


def test_reports_become_a_table_and_a_plot(tmp_path: Path) -> None:
    cases = [Case("v5e:2x2", "data", 2, 4), Case("2*v5e:2x4", "data", 2, 4), Case("v5e:4x4", "zero=side", 2, 4)]
    assert [case.chips for case in cases] == [4, 16, 16]
    assert [case.axes() for case in cases] == [{}, {}, {"zero": 4}]
    assert cases[1].command("m.json")[4:] == [
        *("--model", "m.json", "--topology", "v5e:2x4", "--slices", "2", "--global-batch", "64"),
        *("--sequence-length", "512", "--alternatives", "0", "--json"),
    ]
    report = make_report(CompileAheadConfig(global_batch=128), needed=8).to_json()
    rows = [row for case in cases if (row := Row.of(case, report)) is not None]
    sent = sum(collective["wire_bytes"] for collective in report["cost"]["collectives"]) / 1e6
    assert rows[0].links == pytest.approx(sent)
    assert rows[0].communicating == pytest.approx(
        1e3 * (report["timing"]["collective_seconds"] + report["timing"]["hidden_seconds"])
    )
    lines = list(table(rows))
    assert len(lines) == 2 + 3
    assert lines[2].endswith("| 100.0% |")
    plot(rows, tmp_path / "weak.png", "title")
    assert (tmp_path / "weak.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="AXIS=SIZE"):
        Case("v5e:2x2", "zero=most", 2, 4).axes()


def test_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(name, "data", 2, 4) for name in ("v5e:2x2", "v5e:4x4")]
    compiled, interruptions = [], [KeyboardInterrupt]

    def compile_case(case: Case, folder: Path) -> dict:
        if compiled and interruptions:
            raise interruptions.pop()
        compiled.append(case)
        return {"fits": False, "topology": case.topology}

    monkeypatch.setattr(weak_scaling, "compile_case", compile_case)
    monkeypatch.setattr(weak_scaling, "version", lambda package: "1.0")  # libtpu may not be installed
    with pytest.raises(KeyboardInterrupt):
        weak_scaling.compile_cases(cases, tmp_path / "results.json")
    reports = weak_scaling.compile_cases(cases, tmp_path / "results.json")
    assert [reports[case.key]["topology"] for case in cases] == ["v5e:2x2", "v5e:4x4"]
    assert compiled == cases
