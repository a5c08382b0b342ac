"""Runs queued/worker.sh: training in the background, its exit code, and how it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..support.tpu_recorder import WHEEL, WORKER, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def worker(machine: Machine) -> Iterator[Machine]:
    yield machine
    machine.run(WORKER, "stop")


def status(worker: Machine) -> tuple[str, int]:
    """Returns the state and the step of the newest checkpoint."""
    line = worker.run(WORKER, "status", "bucket/my run").stdout.split()
    assert line[0] == "worker"
    return line[2], int(line[3])


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition. The deadline only ends a hang."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_state(worker: Machine, state: str) -> None:
    wait_until(lambda: status(worker)[0] == state)


def test_training_starts_once_and_its_exit_code_is_kept(worker: Machine) -> None:
    assert status(worker) == ("none", 0)
    home = worker.folder / "home"
    for name in ("9", "100", "200.orbax-checkpoint-tmp"):
        (home / "bucket" / "my run" / "checkpoints" / name).mkdir(parents=True)
    program = "echo in $PWD; until [ -e end ]; do sleep 0.05; done; exit 42"
    assert "started" in worker.run(WORKER, "start", "bash", "-c", program).stdout
    assert status(worker) == ("running", 100)
    assert "already running" in worker.run(WORKER, "start", "false").stdout
    (home / "end").touch()
    wait_for_state(worker, "42")
    log = worker.run(WORKER, "logs", "3").stdout
    assert f"in {home}\n" in log
    assert "exit code 42\n" in log
    assert worker.run(WORKER, "start", "true").returncode == 0
    wait_for_state(worker, "0")


def test_training_outlives_the_connection(worker: Machine) -> None:
    """The end of a connection sends SIGHUP to its processes."""
    worker.run(Path("/usr/bin/setsid"), "bash", "-c", f"'{WORKER}' start sleep 60; kill -HUP 0")
    assert status(worker)[0] == "running"


def test_stop_lets_training_save(worker: Machine) -> None:
    program = "trap 'sleep 0.2; touch saved; exit 42' TERM; touch ready; while :; do sleep 0.05; done"
    worker.run(WORKER, "start", "bash", "-c", program)
    wait_until((worker.folder / "home" / "ready").exists)
    assert worker.run(WORKER, "stop").returncode == 0
    assert (worker.folder / "home" / "saved").exists()
    wait_for_state(worker, "42")


def test_exit_code_of_a_signal_is_128_plus_its_number(worker: Machine) -> None:
    worker.run(WORKER, "start", "bash", "-c", "kill -ABRT $$")
    wait_for_state(worker, "134")


def test_rebooted_machine_has_no_training(worker: Machine) -> None:
    """Files that a crash leaves behind are not mistaken for an exit code or a running process."""
    worker.run(WORKER, "start", "sleep", "60")
    os.killpg(int((worker.folder / "home" / "job" / "pid").read_text()), signal.SIGKILL)
    wait_for_state(worker, "none")


def test_processes_that_training_leaves_behind_are_killed(worker: Machine) -> None:
    worker.run(WORKER, "start", "bash", "-c", "sleep 60 & exit 1")
    wait_for_state(worker, "1")
    group = int((worker.folder / "home" / "job" / "pid").read_text())
    pgrep = ["pgrep", "--pgroup", str(group), "sleep"]
    wait_until(lambda: not subprocess.run(pgrep, capture_output=True, check=False).stdout)


def test_setup_of_a_worker(machine: Machine) -> None:
    machine.install("python3", "uv", "mountpoint", "gcsfuse")
    answers = [("", 0), ("", 0), ("", 0), ("", 1)]
    done = machine.run(WORKER, "setup", WHEEL, "texts", answers=answers)
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [
        ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"],
        ["uv", "venv", "--quiet", "--allow-existing", "--python", "3.12", "venv"],
        [
            *("uv", "pip", "install", "--quiet", "--python", "venv", "--constraint", "constraints.txt"),
            *("--reinstall-package", "deberta-jax"),
            f"./{WHEEL}[train,tpu]",
        ],
        ["mountpoint", "--quiet", "bucket"],
        [
            *("gcsfuse", "--implicit-dirs", "--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"),
            *("texts", "bucket"),
        ],
    ]
    machine.run(WORKER, "setup", WHEEL, "texts")  # the bucket is already mounted
    assert machine.calls()[-1][0] == "mountpoint"
    (machine.folder / "bin" / "gcsfuse").unlink()
    machine.install("curl", "sudo")
    machine.run(WORKER, "setup", WHEEL, "texts", answers=answers)
    fetch, install = machine.calls()[4:]
    package = fetch[fetch.index("--output") + 1]
    assert fetch[-1].startswith("https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v")
    assert fetch[-1].endswith(package.removeprefix("job"))
    assert install == [
        "sudo",
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=600",
        "install",
        "--yes",
        "--quiet",
        f"./{package}",
    ]
