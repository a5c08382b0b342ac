"""Tests what `compile-ahead` prints: tables, JSON and the plot of a sweep."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.compile_ahead.command import CompileAheadConfig
from deberta_jax.train.compile_ahead.report import describe
from deberta_jax.train.compile_ahead.report_tables import print_report, print_sweep
from deberta_jax.train.compile_ahead.sweep_plot import check_plot_path, plot_sweep
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS
from deberta_jax.train.configs import MeshConfig

from ...support.compile_reports import make_report

CONFIG = CompileAheadConfig(topology="v5e:2x4", global_batch=128)


def test_description_names_settings_that_are_not_defaults() -> None:
    assert describe(CONFIG) == "deberta-v3-large rtd on v5e:2x4, 128 rows of 512 tokens, bfloat16"
    config = dataclasses.replace(CONFIG, slices=2, accumulation=4, remat=True, mesh=MeshConfig(fsdp=2))
    assert describe(config) == (
        "deberta-v3-large rtd on 2 slices of v5e:2x4, 128 rows of 512 tokens, bfloat16, accumulation 4, remat, fsdp 2"
    )


def test_tables_of_a_step_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(make_report(CONFIG, needed=8), CHIPS["v5e"], [])
    printed = capsys.readouterr().out
    for text in ("needed at the peak", "Collectives within a slice", "chip-hours", "free", "Lower bound"):
        assert text in printed
    assert printed.count("MFU without the relative terms of attention") == 2
    assert re.search(r"bundles of the schedules +│ +12\.0 M", printed)
    assert re.search(r"matrix units at their peak +│ +6\.0 M", printed)
    assert "Reductions within a slice: 0% of their bytes are asynchronous" in printed
    assert "Alternatives" not in printed


def test_tables_of_a_step_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    other = make_report(dataclasses.replace(CONFIG, accumulation=4), needed=12)
    print_report(make_report(CONFIG, needed=20, fits=False), CHIPS["v5e"], [other])
    printed = capsys.readouterr().out
    for text in ("everything else", "short by", "Alternatives"):
        assert text in printed
    assert "Time" not in printed


def test_json_keys_are_a_format() -> None:
    values = json.loads(json.dumps(make_report(CONFIG, needed=8).to_json()))
    memory = {"parameter_bytes", "optimizer_bytes", "batch_bytes", "needed_bytes", "available_bytes"}
    others = {"mesh", "chips", "devices", "rows", "cost", "timing", "compile_seconds", "compile_cpu_seconds"}
    assert set(values) == {"source", "fits", "settings"} | memory | others
    program = {"argument_bytes", "temporary_bytes", "program_bytes", "peak_bytes"}
    cycles = {"cycles", "kernel_cycles", "unpriced", "unpriced_bytes", "collectives", "bound"}
    assert set(values["cost"]) == program | cycles
    bounds = {"cycles", "bundle_cycles", "matrix_cycles", "hbm_cycles", "hbm_bytes", "unscheduled_cycles"}
    assert set(values["cost"]["bound"]) == bounds
    assert {"mfu", "mfu_without_relative", "bound"} <= set(values["timing"])
    assert set(values["timing"]["bound"]) == {"step_seconds", "mfu", "mfu_without_relative"}
    settings = {
        "model",
        "topology",
        "task",
        "global_batch",
        "sequence_length",
        "accumulation",
        "mesh",
        "dtype",
        "remat",
        "kept_layers",
        "moment_dtype",
    }
    settings |= {"vocab_size", "mask_rate", "embedding_sharing", "decoupled", "num_labels", "slices", "xla_flags"}
    assert set(values["settings"]) == settings
    failed = make_report(CONFIG, needed=20, fits=False).to_json()
    assert (failed["fits"], failed["cost"], failed["timing"]) == (False, None, None)


@pytest.mark.parametrize("fits", [True, False])
def test_sweep_is_a_table_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fits: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # wide enough that no cell is wrapped
    configs = [dataclasses.replace(CONFIG, global_batch=batch) for batch in (64, 128)]
    reports = [make_report(configs[0], needed=8, fits=fits), make_report(configs[1], needed=16, fits=False)]
    print_sweep(reports)
    assert "8.00 of 15.75" in capsys.readouterr().out
    plot_sweep(reports, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_the_name_of_a_model_is_drawn_as_it_is(tmp_path: Path) -> None:
    report = make_report(dataclasses.replace(CONFIG, model=r"runs/$x_{\model.json"), needed=8)
    plot_sweep([report], tmp_path / "sweep.svg")
    assert r"runs/$x_{\model.json rtd on v5e:2x4" in (tmp_path / "sweep.svg").read_text(encoding="utf-8")


def test_path_of_the_plot_is_checked_first(tmp_path: Path) -> None:
    check_plot_path(tmp_path / "plots" / "sweep.PDF")
    assert (tmp_path / "plots").is_dir()
    with pytest.raises(UserError, match=r"cannot save a plot as 'sweep'; give a file name that ends in \."):
        check_plot_path(Path("sweep"))
