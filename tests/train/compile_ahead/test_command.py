"""Tests the command: the search for a step that fits, the sweep, exit status and messages."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from deberta_jax import DebertaConfig
from deberta_jax.__main__ import main
from deberta_jax.errors import UserError
from deberta_jax.train.compile_ahead import command
from deberta_jax.train.compile_ahead.command import (
    CompileAheadConfig,
    candidate_meshes,
    compile_alternatives,
    likely_alternatives,
    shortfall_message,
)
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, Topology
from deberta_jax.train.configs import MeshConfig

from ...support.compile_reports import make_report
from ...support.small_models import SMALL
from ...support.tpu_topologies import needs_libtpu

CONFIG = CompileAheadConfig(global_batch=128)
EIGHT_DEVICES = Topology(CHIPS["v5e"], jax.devices())


def write_model(folder: Path, config: DebertaConfig) -> str:
    path = folder / "model.json"
    path.write_text(json.dumps(config.to_json()))
    return str(path)


@pytest.fixture
def compiled_steps(monkeypatch: pytest.MonkeyPatch) -> list[CompileAheadConfig]:
    """Replaces the compiler: a step of more than 8 rows per device does not fit. Returns the compiled steps."""
    steps: list[CompileAheadConfig] = []

    def compile_step(config: CompileAheadConfig, hardware: Topology) -> Any:
        steps.append(config)
        rows = config.global_batch // 8 // config.accumulation
        return make_report(config, needed=6 + rows, fits=rows <= 8)

    monkeypatch.setattr(command, "compile_step", compile_step)
    monkeypatch.setattr(command, "topology", lambda name, *, slices: EIGHT_DEVICES)
    return steps


# ---------------------------------------------------------------- alternatives


def test_alternatives_change_one_setting_first_and_then_all() -> None:
    changes = list(likely_alternatives(CONFIG, make_report(CONFIG, needed=30, fits=False)))
    assert [(change.accumulation, change.remat, change.mesh.fsdp) for change in changes] == [
        (4, False, 1),  # 24 GiB of temporaries must shrink to 9.75 GiB
        (1, True, 1),
        (16, True, 1),
        (16, True, 8),
    ]


def test_a_split_of_the_parameters_is_tried_where_it_suffices() -> None:
    changes = likely_alternatives(CONFIG, make_report(CONFIG, needed=18, fits=False))
    assert [change.mesh.fsdp for change in changes] == [1, 1, 2, 1, 8]  # half of the 6 GiB of state is enough


def test_accumulation_is_not_tried_where_the_state_alone_does_not_fit() -> None:
    config = dataclasses.replace(CONFIG, remat=True)
    report = make_report(config, needed=30, fits=False)
    report = dataclasses.replace(report, memory=dataclasses.replace(report.memory, parameter_bytes=20 << 30))
    first = next(iter(likely_alternatives(config, report)))
    assert first.mesh.fsdp > 1 or first.accumulation == report.rows


def test_shortfall_names_the_alternatives_that_fit() -> None:
    failed = make_report(CONFIG, needed=30, fits=False)
    fitting = make_report(dataclasses.replace(CONFIG, accumulation=4), needed=12)
    other = make_report(dataclasses.replace(CONFIG, remat=True), needed=20, fits=False)
    message = shortfall_message(failed, [fitting, other])
    assert (
        "a device needs 30.00 GiB and has 15.75 GiB, short by 14.25 GiB (compiler estimate); it fits with "
        "--accumulation 4" in message
    )
    assert "--remat" not in message
    assert "it does not fit with --remat either" in shortfall_message(failed, [other])
    assert "try --accumulation" in shortfall_message(failed, [])


def test_as_many_alternatives_are_compiled_as_asked(compiled_steps: list[CompileAheadConfig]) -> None:
    config = dataclasses.replace(CONFIG, alternatives=2)
    report = make_report(config, needed=30, fits=False)
    assert len(compile_alternatives(config, report, EIGHT_DEVICES)) == 2
    assert len(compiled_steps) == 2


# ---------------------------------------------------------------- the command


def test_status_is_0_and_the_report_is_printed(
    compiled_steps: list[CompileAheadConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile-ahead", "--global-batch", "64"]) == 0
    assert "chip-hours" in capsys.readouterr().out
    assert len(compiled_steps) == 1


def test_status_is_1_with_the_shortfall_if_the_step_does_not_fit(
    compiled_steps: list[CompileAheadConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile-ahead", "--global-batch", "128", "--alternatives", "1", "--json"]) == 1
    printed = capsys.readouterr()
    assert "short by" in printed.err
    assert "it fits with --accumulation" in printed.err
    values = json.loads(printed.out)
    assert (values["fits"], [other["fits"] for other in values["alternatives"]]) == (False, [True])


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_sweep_compiles_every_batch_on_every_mesh(
    compiled_steps: list[CompileAheadConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    json_option: list[str],
) -> None:
    options = ["--global-batch", "128", "--sweep", "--sweep-fsdp", "1", "2", "--plot", str(tmp_path / "sweep.png")]
    assert main(["compile-ahead", *options, *json_option]) == 0
    assert [(step.global_batch, step.mesh.fsdp) for step in compiled_steps] == [
        *((32, 1), (64, 1), (128, 1)),
        *((32, 2), (64, 2), (128, 2)),
    ]
    assert (tmp_path / "sweep.png").exists()
    if json_option:
        assert len(json.loads(capsys.readouterr().out)) == 6


def test_the_fastest_mesh_that_fits_is_named(
    compiled_steps: list[CompileAheadConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_step(config: CompileAheadConfig, hardware: Topology) -> Any:
        compiled_steps.append(config)
        # The less is divided the faster, but data parallelism does not fit.
        report = make_report(config, needed=20 if config.mesh == MeshConfig() else 10, fits=config.mesh != MeshConfig())
        if report.timing is None:
            return report
        seconds = config.mesh.zero + 2 * config.mesh.fsdp
        return dataclasses.replace(report, timing=dataclasses.replace(report.timing, step_seconds=seconds))

    monkeypatch.setattr(command, "compile_step", compile_step)
    assert main(["compile-ahead", "--global-batch", "64", "--mesh-auto", "--json"]) == 0
    assert [step.mesh for step in compiled_steps] == [
        MeshConfig(),
        MeshConfig(zero=8),
        MeshConfig(fsdp=8),
        MeshConfig(fsdp=2),
    ]
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert values["recommended"] == {"zero": 1, "fsdp": 2, "tensor": 1}
    assert [step["fits"] for step in values["steps"]] == [True, True, True, False]
    assert "the fastest mesh that fits: --mesh.fsdp 2 (5,000 ms a step)" in printed.err


def test_no_mesh_fits(compiled_steps: list[CompileAheadConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile-ahead", "--global-batch", "128", "--mesh-auto"]) == 1
    printed = capsys.readouterr()
    assert "Meshes" in printed.out
    assert "the step does not fit" in printed.err


def test_one_device_has_one_mesh() -> None:
    assert candidate_meshes(CONFIG, 1) == [MeshConfig()]


def test_mesh_auto_and_sweep_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile-ahead", "--sweep", "--mesh-auto"]) == 1
    assert "mesh_auto and sweep are both set; set one of them" in capsys.readouterr().err


def test_sweep_checks_all_steps_before_it_compiles_any(
    compiled_steps: list[CompileAheadConfig], tmp_path: Path
) -> None:
    options = ["--sweep", "--sweep-batches", "64", "12", "--plot", str(tmp_path / "sweep.png")]
    assert main(["compile-ahead", *options]) == 1
    assert compiled_steps == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0.0}, "tokens is 0; it must be above 0"),
        ({"alternatives": -1}, "alternatives is -1; it must be at least 0"),
        ({"sweep_batches": (8, 0)}, "sweep_batches is 0; it must be at least 1"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CompileAheadConfig(**values)


# ---------------------------------------------------------------- with the TPU compiler


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernels are priced in another process, and the sharded state takes the bytes that the report says."""
    model = write_model(tmp_path, SMALL.replace(num_hidden_layers=1))
    options = ["--task", "finetune", "--topology", "v5e:2x2", "--global-batch", "16", "--sequence-length", "16"]
    assert main(["compile-ahead", "--model", model, *options, "--mesh.fsdp", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"]
    assert report["mesh"] == {"data": 2, "zero": 1, "fsdp": 2, "tensor": 1}
    assert report["cost"]["argument_bytes"] >= report["parameter_bytes"] + report["optimizer_bytes"]
    assert report["optimizer_bytes"] == pytest.approx(2 * report["parameter_bytes"], rel=0.01)
    assert any(name.startswith("disentangled_forward") for name in report["cost"]["kernel_cycles"])
    assert "pallas_call" not in report["cost"]["unpriced"]
    assert any(collective["kind"] == "all-reduce" for collective in report["cost"]["collectives"])
    assert 0 < report["timing"]["mfu"] < 1


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path, SMALL.replace(num_hidden_layers=1, num_attention_heads=1))
    options = ["--topology", "v5e:1x1", "--global-batch", "65536", "--sequence-length", "128", "--task", "finetune"]
    assert main(["compile-ahead", "--model", model, *options, "--xla-flags", "", "--alternatives", "0", "--json"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["fits"], report["cost"], report["alternatives"]) == (False, None, [])
    assert report["needed_bytes"] > report["available_bytes"] == CHIPS["v5e"].hbm
    assert "short by" in printed.err
