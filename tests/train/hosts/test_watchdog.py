"""The watchdog's threads: reports reach all processes, and a failure ends them with one exit code."""

import json
import threading

import pytest

from deberta_jax.train.configs import HostsConfig
from deberta_jax.train.hosts import watchdog as watchdog_module
from deberta_jax.train.hosts.phases import PhaseTimer
from deberta_jax.train.hosts.watchdog import Watchdog

from ...support.cluster import wait_until
from ...support.fake_coordination import FakeCoordination
from ...support.fake_time import fake_time

NAMES = ["process 0 on a", "process 1 on b", "process 2 on c"]
NEVER = HostsConfig(dead_after=10_000, stall_after=10_000, slow_after=10_000)


class Watchdogs:
    """The watchdogs of three processes, and the exit codes with which they ended theirs."""

    def __init__(self, config: HostsConfig) -> None:
        self.store = FakeCoordination(len(NAMES))
        self.exit_codes: dict[int, int] = {}
        self.phases = [PhaseTimer() for _ in NAMES]
        self.watchdogs = []
        for index, phases in enumerate(self.phases):
            watchdog = Watchdog(
                self.store, index=index, names=NAMES, phases=phases, config=config, terminate=self._terminate(index)
            )
            watchdog.period = 0.05
            self.watchdogs.append(watchdog)

    def _terminate(self, index: int):
        def terminate(code: int) -> None:
            self.exit_codes.setdefault(index, code)

        return terminate

    def wait_for_exits(self, *processes: int) -> None:
        wait_until(lambda: set(processes) <= self.exit_codes.keys(), seconds=120, purpose=f"the end of {processes}")

    def beat_of(self, process: int) -> int:
        return json.loads(self.store.values.get(f"deberta_jax/alive/{process}", '{"beat": 0}'))["beat"]

    def wait_for_beats(self, *processes: int, more: int = 3) -> None:
        goals = {process: self.beat_of(process) + more for process in processes}
        wait_until(
            lambda: all(self.beat_of(process) >= goal for process, goal in goals.items()), seconds=120, purpose="beats"
        )


@pytest.fixture
def quiet():
    """Watchdogs that judge nobody by themselves."""
    group = Watchdogs(NEVER)
    yield group
    group.store.answering.set()
    for watchdog in group.watchdogs:
        watchdog._stopped.set()


def test_reports_are_published_and_the_last_one_says_that_the_process_has_ended(quiet: Watchdogs) -> None:
    for index, watchdog in enumerate(quiet.watchdogs):
        quiet.phases[index].enter("input", 7)
        watchdog.start()
    quiet.wait_for_beats(0, 1, 2)
    published = json.loads(quiet.store.values["deberta_jax/alive/1"])
    assert (published["step"], published["phase"]) == (7, "input")
    assert "test_watchdog.py" in published["where"] or "cluster.py" in published["where"]
    for watchdog in quiet.watchdogs:
        watchdog.stop()
    assert [quiet.beat_of(process) for process in range(3)] == [-1, -1, -1]
    assert not quiet.exit_codes


def test_a_failure_reaches_all_others_with_its_exit_code(quiet: Watchdogs, capfd) -> None:
    for watchdog in quiet.watchdogs:
        watchdog.start()
    quiet.watchdogs[1].publish_failure(1, "failed: no such column")
    quiet.wait_for_exits(0, 2)
    assert quiet.exit_codes == {0: 1, 2: 1}
    printed = capfd.readouterr().err
    assert "process 0 on a: process 1 on b failed: no such column. Exit code 1" in printed
    assert "thread" not in printed  # no stacks: they belong to the process that failed


def test_a_failure_is_published_although_the_service_hangs(quiet: Watchdogs) -> None:
    quiet.store.answering.clear()
    quiet.watchdogs[1].publish_failure(1, "failed: no such column")  # returns
    quiet.store.answering.set()
    wait_until(lambda: "deberta_jax/failed/1" in quiet.store.values, seconds=120, purpose="the failure")


def test_a_silent_process_ends_the_others_with_42_and_a_report(capfd, monkeypatch) -> None:
    clock = fake_time(monkeypatch, watchdog_module)
    group = Watchdogs(HostsConfig(dead_after=30))
    for index in (0, 2):
        group.watchdogs[index].start()
    for _ in range(3):
        group.wait_for_beats(0, 2)
        clock.now += 10
    group.wait_for_beats(0, 2)
    assert not group.exit_codes
    clock.now += 10
    group.wait_for_exits(0, 2)
    assert group.exit_codes == {0: 42, 2: 42}
    printed = capfd.readouterr().err
    assert "lost process 1 on b: nothing heard for 30 s. Exit code 42" in printed
    assert "What every process was doing:\n  process 0 on a: step 0, start for " in printed
    assert "  process 1 on b: never heard of" in printed
    assert "Current thread" in printed  # the stacks


def test_a_service_that_hangs_does_not_keep_a_process_from_its_end(capfd, monkeypatch) -> None:
    clock = fake_time(monkeypatch, watchdog_module)
    group = Watchdogs(HostsConfig(dead_after=30))
    group.watchdogs[1].start()
    group.wait_for_beats(1)
    group.store.answering.clear()
    clock.now += 31
    group.wait_for_exits(1)
    group.store.answering.set()
    assert group.exit_codes == {1: 42}
    assert "process 1 on b: lost process 0 on a: nothing heard for 30 s. Exit code 42" in capfd.readouterr().err


def test_a_service_that_is_gone_is_tried_again(quiet: Watchdogs, monkeypatch) -> None:
    tried = threading.Event()

    def refuse(*_: object, **__: object) -> None:
        tried.set()
        raise RuntimeError("UNAVAILABLE")

    with monkeypatch.context() as patch:
        patch.setattr(quiet.store, "key_value_set", refuse)
        quiet.watchdogs[1].start()
        assert tried.wait(120)
    quiet.wait_for_beats(1)
