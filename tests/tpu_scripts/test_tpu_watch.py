"""queued/watch.sh and gke/watch.sh through preemptions, crashes and mistakes: what is called, in which order."""

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
    """What the workers answer, amid what ssh says."""
    return "\n".join(["banner of a worker", *(f"worker host-{n} {state} {step}" for n, state in enumerate(states))])


def watch(machine: Machine, story: Story, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs watch.sh through a story: the calls that it must make, and the answers that it gets."""
    answers = [[answer, 0] for _, answer in story]
    done = machine.run(QUEUED / "watch.sh", *WATCH, *options, "--", *TRAIN, answers=answers)
    assert machine.calls() == [call for call, _ in story], done.stdout
    return done


def seen(*states: str, step: int = 0) -> Story:
    return [(DESCRIBE, "ACTIVE"), (STATUS, workers(*states, step=step))]


FRESH = [*seen("none", "none"), (SCP, ""), (SETUP, ""), (START, "")]
AGAIN = [(STOP, ""), (START, "")]


def test_a_new_slice_is_set_up_and_trained_to_the_end(machine: Machine) -> None:
    waiting = [(DESCRIBE, "WAITING_FOR_RESOURCES"), (DESCRIBE, "PROVISIONING")]
    done = watch(machine, [*waiting, *FRESH, *seen("running", "running"), *seen("0", "running"), *seen("0", "0")])
    assert done.returncode == 0
    assert "done on 2 workers; the slice goes on costing money until: delete.sh base" in done.stdout


def test_a_slice_that_was_taken_away_is_created_again(machine: Machine) -> None:
    taken = [(DESCRIBE, "SUSPENDING"), (DESCRIBE, "SUSPENDED"), (DELETE, ""), (CREATE, "")]
    back = [(DESCRIBE, "WAITING_FOR_RESOURCES"), *FRESH]
    done = watch(machine, [*seen("running", "running"), *taken, *back, *seen("0", "0")])
    assert done.returncode == 0


@pytest.mark.parametrize("code", ["42", "127", "134", "255"])
def test_what_asks_for_it_is_started_again(machine: Machine, code: str) -> None:
    crashed = seen(code, code, step=100)
    done = watch(machine, [*seen("running", "running"), *crashed, *AGAIN, *seen("0", "0", step=200)])
    assert done.returncode == 0


def test_workers_get_time_to_notice_before_all_are_started_again(machine: Machine) -> None:
    """A frozen worker does not keep the others waiting for ever."""
    story = [*seen("42", "running"), *seen("42", "42"), *AGAIN]
    frozen = [*seen("42", "running") * 6, *AGAIN]
    assert watch(machine, [*story, *seen("running", "running"), *frozen, *seen("0", "0")]).returncode == 0


def test_a_worker_that_was_restarted_is_set_up_first(machine: Machine) -> None:
    """The machine came back without training, the others have lost it."""
    lost = [*seen("42", "none"), (SCP, ""), (SETUP, ""), *AGAIN]
    unnoticed = [*seen("running", "none") * 6, (SCP, ""), (SETUP, ""), *AGAIN]
    assert watch(machine, [*lost, *unnoticed, *seen("0", "0")]).returncode == 0


@pytest.mark.parametrize("code", ["1", "2", "41", "126"])
def test_a_mistake_ends_it_with_the_logs(machine: Machine, code: str) -> None:
    done = watch(machine, [*seen("42", code), (LOGS, "host-1: no such tokenizer")])
    assert done.returncode == 1
    assert f"host-1: exit code {code}, which starting again does not help" in done.stdout
    assert "host-1: no such tokenizer" in done.stdout


def test_starts_without_a_new_checkpoint_are_counted(machine: Machine) -> None:
    """A new checkpoint sets the count back; a lower step, as after a fall back to an older one, does not."""
    progress = [*seen("42", step=100), *AGAIN, *seen("42", step=100), *AGAIN]
    stuck = [*seen("42", step=200), *AGAIN, *seen("42", step=200), *AGAIN, *seen("42", step=100), *AGAIN]
    done = watch(machine, [*progress, *stuck, *seen("42", step=200), (LOGS, "")])
    assert done.returncode == 1
    assert "none of the last 3 starts saved a new checkpoint (the newest: 200)" in done.stdout


def test_requests_that_fail_are_counted_too(machine: Machine) -> None:
    failed = [(DESCRIBE, "FAILED"), (DELETE, ""), (CREATE, "")]
    assert watch(machine, [*failed * 3, (DESCRIBE, "FAILED"), (LOGS, "")]).returncode == 1


def test_calls_that_fail_are_repeated_but_not_for_ever(machine: Machine) -> None:
    """A slice that was deleted is created when that can be reached again; nothing is deleted on mere silence."""
    story = [*seen("running"), (DESCRIBE, ""), (DESCRIBE, "SUSPENDED"), (DELETE, ""), (CREATE, ""), (CREATE, "")]
    answers = [[answer, 0] for _, answer in story]
    answers[2][1] = answers[5][1] = 1
    answers += [["", 1]] * 21
    done = machine.run(QUEUED / "watch.sh", *WATCH, "--", *TRAIN, answers=answers)
    assert machine.calls() == [call for call, _ in story] + [DESCRIBE] * 20 + [LOGS]
    assert done.returncode == 1
    assert "20 looks in a row failed" in done.stdout


def test_a_dry_run_of_watch_prints_each_call_once(machine: Machine) -> None:
    done = machine.run(QUEUED / "watch.sh", "--dry-run", *WATCH, "--", *TRAIN)
    printed = [shlex.split(line) for line in done.stdout.splitlines()]
    assert printed == [DESCRIBE, STATUS, SCP, SETUP, STOP, START, LOGS, DELETE, CREATE]
    assert (done.returncode, done.stderr, machine.calls()) == (0, "", [])


def test_it_waits_longer_before_each_start_that_saved_nothing(machine: Machine) -> None:
    machine.install("sleep")
    waits = {seconds: (["sleep", seconds], "") for seconds in ("1", "2", "7")}
    first, *others = ([*seen("42"), *wait, *AGAIN, waits["7"]] for wait in ([], [waits["1"]], [waits["2"]]))
    story = [*first, *others[0], *others[1], *seen("42"), (LOGS, "")]
    assert watch(machine, story, "--poll=7", "--backoff=1").returncode == 1


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [(0, 0, "base is done"), (125, 1, "base has failed"), (124, 1, "cannot tell"), (1, 1, "cannot tell")],
)
def test_the_end_of_a_workload(machine: Machine, answer: int, status: int, message: str) -> None:
    done = machine.run(GKE / "watch.sh", "base", answers=[["", answer], ["newest\noldest", 0]])
    assert done.returncode == status
    assert message in done.stdout
    wait = ["xpk", "workload", "list", "--wait-for-job-completion=base", *IN_CLUSTER]
    assert machine.calls() == ([wait, GKE_LOGS_100] if answer == 125 else [wait])
    assert ("oldest\nnewest" in done.stdout) == (answer == 125)
