"""Weights & Biases and MLflow as logs: really written offline and read back; refused, failing and hanging services."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta_jax.errors import MissingPackageError, UserError
from deberta_jax.train.reporting import background
from deberta_jax.train.reporting.reporter import RunReporter
from deberta_jax.train.reporting.services import FILE, LoggedRun, check_services, open_service

# Tests of the services are slow: CI installs their packages with the other peers.
SETTINGS = {"batch-size": 8, "optimizer.learning-rate": 1e-4, "text": "a.txt", "max-seconds": None}


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(background, "_SECONDS_TO_CLOSE", 300.0)  # its start is slow on a busy machine


@pytest.fixture
def mlflow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(background, "_SECONDS_TO_CLOSE", 300.0)
    return f"file:{tmp_path / 'mlruns'}"


def report(folder: Path, name: str, *, first: int, settings: dict = SETTINGS) -> None:
    """Logs two steps and an evaluation, as a run that starts or resumes at a step does."""
    run = LoggedRun(folder, "a run", settings, (name,))
    services = {name: open_service(name, run)}
    with RunReporter(folder, total_steps=9, tokens_per_step=1, every=1, services=services) as reporter:
        reporter.resume_at(first - 1)
        reporter.step(first, {"loss": 1 / first, "broken": float("nan")})
        reporter.step(first + 1, {"loss": 1 / (first + 1)})
        reporter.evaluation(first + 1, {"accuracy": 0.5})


def wandb_records(path: Path) -> Iterator[object]:
    """The records of an offline run: a header, and blocks of 32 KiB of pieces with checksum, length and type."""
    from wandb.proto import wandb_internal_pb2

    data, position, held = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        held += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(held)
            held = b""
            yield record


def wandb_history(folder: Path) -> tuple[list[dict], set[str], set[str]]:
    """What the offline runs of a folder have: the logged values, the names of settings, and the ids."""
    history, settings, ids = [], set(), set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                history.append({key: json.loads(value) for key, value in items.items() if key[0] != "_"})
            elif record.WhichOneof("record_type") == "config":
                settings |= {item.key or ".".join(item.nested_key) for item in record.config.update}
            elif record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
    return history, settings, ids


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_offline")
def test_wandb_offline_has_metrics_settings_and_one_id(tmp_path: Path) -> None:
    report(tmp_path, "wandb", first=1)
    report(tmp_path, "wandb", first=2, settings=SETTINGS | {"max-seconds": 5})  # resumed at step 2
    history, settings, ids = wandb_history(tmp_path)
    assert history == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 2, "eval/accuracy": 0.5},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 1 / 3},
        {"step": 3, "eval/accuracy": 0.5},
    ]
    assert set(SETTINGS) <= settings
    assert ids == {json.loads((tmp_path / FILE).read_text())["wandb"]}


@pytest.mark.slow
def test_mlflow_has_metrics_settings_and_one_run(tmp_path: Path, mlflow_folder: str) -> None:
    from mlflow import MlflowClient

    report(tmp_path, "mlflow", first=1)
    report(tmp_path, "mlflow", first=3, settings=SETTINGS | {"max-seconds": 5, "new": "x"})
    client = MlflowClient(mlflow_folder)
    experiment = client.get_experiment_by_name("deberta-jax")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / FILE).read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")
    assert run.data.params == {name: str(value) for name, value in SETTINGS.items()} | {"new": "x"}
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert run.data.metrics["eval/accuracy"] == 0.5
    assert "broken" not in run.data.metrics


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[]", '{"mlflow": 3}'])
def test_a_damaged_file_of_ids_starts_a_new_run(tmp_path: Path, mlflow_folder: str, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    report(tmp_path, "mlflow", first=1)
    assert json.loads((tmp_path / FILE).read_text()).keys() == {"mlflow"}


@pytest.mark.slow
def test_a_failing_service_is_given_up_with_one_line(tmp_path: Path, mlflow_folder: str, capsys, monkeypatch) -> None:
    (tmp_path / FILE).write_text('{"mlflow": "0123456789abcdef0123456789abcdef"}')  # of a run that was deleted
    report(tmp_path, "mlflow", first=1)
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if "mlflow is no longer written" in line]
    assert line.endswith("Training goes on")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_hanging_server_does_not_delay_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        service = open_service("mlflow", LoggedRun(tmp_path, "a run", SETTINGS))
        reporter = RunReporter(tmp_path, total_steps=99, tokens_per_step=1, every=99, services={"mlflow": service})
        slowest = 0.0
        for step in range(1, 50):
            before = time.perf_counter()
            reporter.step(step, {"loss": 1.0})
            slowest = max(slowest, time.perf_counter() - before)
        reporter.flush()
        (hanging,) = [thread for thread in threading.enumerate() if thread.name == "log mlflow"]
        assert hanging.is_alive()
        monkeypatch.setattr("deberta_jax.train.reporting.background._SECONDS_TO_CLOSE", 0.1)
        reporter.close()
    assert slowest < 60  # the client itself would wait for 120 seconds and try again
    assert "mlflow: 49 entries could not be written" in capsys.readouterr().out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 49


def test_what_cannot_be_used_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"--log wandb needs a package: pip install 'deberta-jax\[wandb\]'"):
        check_services(["wandb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="finds no key; run `wandb login`"):
        check_services(["wandb"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    check_services(["wandb"])
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_services(["wandb"])


def test_mlflow_without_a_place_is_refused_before_the_run(tmp_path: Path, mlflow_folder: str, monkeypatch) -> None:
    check_services(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://place")
    with pytest.raises(UserError, match=r"--log mlflow has no place to write to; set MLFLOW_TRACKING_URI .*nothing:"):
        check_services(["mlflow"])
