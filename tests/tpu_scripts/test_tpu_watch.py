"""Tests the calls of queued/watch.sh and gke/watch.sh through preemptions, crashes and mistakes."""

import shlex
import subprocess
from pathlib import Path

import pytest

from ..support.tpu_recorder import (
    CREATE,
    DELETE,
    DESCRIBE,
    GKE,
    GKE_LOGS_100,
    IN_CLUSTER,
    LOGS,
    QUEUED,
    SCP,
    SETUP,
    START,
    STATUS,
    STOP,
    TRAIN,
    WHEEL,
    Machine,
)

WATCH = ("base", "--tier=spot", "--wheel", WHEEL, "--bucket=texts", "--poll=0", "--backoff=0", "--starts=3")
Story = list[tuple[list[str], str]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def workers(*states: str, step: int = 0) -> str:
    """Returns the answers of the workers, after a line of ssh."""
    return "\n".join(["banner of a worker", *(f"worker host-{n} {state} {step}" for n, state in enumerate(states))])


def watch(machine: Machine, story: Story, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs watch.sh through a story: the calls that it must make, and the answer to each."""
    answers = [(answer, 0) for _, answer in story]
    done = machine.run(QUEUED / "watch.sh", *WATCH, *options, "--", *TRAIN, answers=answers)
    assert machine.calls() == [call for call, _ in story], done.stdout
    return done


def checked(*states: str, step: int = 0) -> Story:
    """Returns the calls of one check of an active slice."""
    return [(DESCRIBE, "ACTIVE"), (STATUS, workers(*states, step=step))]


FRESH = [*checked("none", "none"), (SCP, ""), (SETUP, ""), (START, "")]
AGAIN = [(STOP, ""), (START, "")]


def test_new_slice_is_set_up_and_trained_to_the_end(machine: Machine) -> None:
    waiting = [(DESCRIBE, "WAITING_FOR_RESOURCES"), (DESCRIBE, "PROVISIONING")]
    running = [*checked("running", "running"), *checked("0", "running")]
    done = watch(machine, [*waiting, *FRESH, *running, *checked("0", "0")])
    assert done.returncode == 0
    assert "training is done on 2 workers; the slice costs money until you run: delete.sh base" in done.stdout


def test_preempted_slice_is_created_again(machine: Machine) -> None:
    preempted = [(DESCRIBE, "SUSPENDING"), (DESCRIBE, "SUSPENDED"), (DELETE, ""), (CREATE, "")]
    new = [(DESCRIBE, "WAITING_FOR_RESOURCES"), *FRESH]
    done = watch(machine, [*checked("running", "running"), *preempted, *new, *checked("0", "0")])
    assert done.returncode == 0


def test_restart_after_an_exit_code_that_asks_for_it(machine: Machine) -> None:
    story = [*checked("running", "running")]
    for step, code in enumerate(["42", "127", "134", "255"], start=1):
        story += [*checked(code, code, step=step), *AGAIN]
    assert watch(machine, [*story, *checked("0", "0", step=5)]).returncode == 0


def test_workers_get_time_to_stop_before_all_are_restarted(machine: Machine) -> None:
    """After five checks the others are restarted despite a frozen worker."""
    story = [*checked("42", "running"), *checked("42", "42"), *AGAIN]
    frozen = [*checked("42", "running") * 6, *AGAIN]
    assert watch(machine, [*story, *checked("running", "running"), *frozen, *checked("0", "0")]).returncode == 0


def test_rebooted_worker_is_set_up_first(machine: Machine) -> None:
    """The machine is back without training, and the others may not have noticed that it was lost."""
    lost = [*checked("42", "none"), (SCP, ""), (SETUP, ""), *AGAIN]
    unnoticed = [*checked("running", "none") * 6, (SCP, ""), (SETUP, ""), *AGAIN]
    assert watch(machine, [*lost, *unnoticed, *checked("0", "0")]).returncode == 0


@pytest.mark.parametrize("code", ["1", "41", "126"])
def test_a_mistake_prints_the_logs_and_ends_the_watch(machine: Machine, code: str) -> None:
    done = watch(machine, [*checked("42", code), (LOGS, "host-1: no such tokenizer")])
    assert done.returncode == 1
    assert f"host-1: exit code {code}; a restart would not help" in done.stdout
    assert "host-1: no such tokenizer" in done.stdout


def test_starts_without_a_new_checkpoint_are_counted(machine: Machine) -> None:
    """A new checkpoint resets the count. A lower step, as after a fallback to an older checkpoint, does not."""
    progress = [*checked("42", step=100), *AGAIN, *checked("42", step=100), *AGAIN]
    stuck = [*checked("42", step=200), *AGAIN, *checked("42", step=200), *AGAIN, *checked("42", step=100), *AGAIN]
    done = watch(machine, [*progress, *stuck, *checked("42", step=200), (LOGS, "")])
    assert done.returncode == 1
    assert "none of the last 3 starts saved a new checkpoint (newest: 200)" in done.stdout


def test_failed_requests_are_counted(machine: Machine) -> None:
    failed = [(DESCRIBE, "FAILED"), (DELETE, ""), (CREATE, "")]
    assert watch(machine, [*failed * 3, (DESCRIBE, "FAILED"), (LOGS, "")]).returncode == 1


def test_failed_calls_are_repeated_a_limited_number_of_times(machine: Machine) -> None:
    """A deleted slice is created as soon as the cloud answers again. Missing answers delete nothing."""
    story = [*checked("running"), (DESCRIBE, ""), (DESCRIBE, "SUSPENDED"), (DELETE, ""), (CREATE, ""), (CREATE, "")]
    answers = [(answer, int(number in (2, 5))) for number, (_, answer) in enumerate(story)]
    answers += [("", 1)] * 21
    done = machine.run(QUEUED / "watch.sh", *WATCH, "--", *TRAIN, answers=answers)
    assert machine.calls() == [call for call, _ in story] + [DESCRIBE] * 20 + [LOGS]
    assert done.returncode == 1
    assert "20 checks in a row failed" in done.stdout


def test_dry_run_prints_each_call_once(machine: Machine) -> None:
    done = machine.run(QUEUED / "watch.sh", "--dry-run", *WATCH, "--", *TRAIN)
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    assert printed == [DESCRIBE, STATUS, SCP, SETUP, STOP, START, LOGS, DELETE, CREATE]
    assert (done.returncode, done.stderr, machine.calls()) == (0, "", [])


def test_wait_doubles_with_each_start_without_a_checkpoint(machine: Machine) -> None:
    machine.install("sleep")
    waits = {seconds: (["sleep", seconds], "") for seconds in ("1", "2", "7")}
    first, *others = ([*checked("42"), *wait, *AGAIN, waits["7"]] for wait in ([], [waits["1"]], [waits["2"]]))
    story = [*first, *others[0], *others[1], *checked("42"), (LOGS, "")]
    assert watch(machine, story, "--poll=7", "--backoff=1").returncode == 1


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [(0, 0, "base is done"), (125, 1, "base has failed"), (124, 1, "cannot tell"), (1, 1, "cannot tell")],
)
def test_end_of_a_workload(machine: Machine, answer: int, status: int, message: str) -> None:
    done = machine.run(GKE / "watch.sh", "base", answers=[("", answer), ("newest\noldest", 0)])
    assert done.returncode == status
    assert message in done.stdout
    wait = ["xpk", "workload", "list", "--wait-for-job-completion=base", *IN_CLUSTER]
    assert machine.calls() == ([wait, GKE_LOGS_100] if answer == 125 else [wait])
    assert ("oldest\nnewest" in done.stdout) == (answer == 125)
