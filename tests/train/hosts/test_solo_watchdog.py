"""The only process of a run ends when it hangs, and not when it is slow, suspended or in a debugger."""

import sys

import pytest

from deberta_jax.train.configs import HostsConfig
from deberta_jax.train.hosts import phases as phases_module
from deberta_jax.train.hosts import solo_watchdog
from deberta_jax.train.hosts.phases import PhaseTimer
from deberta_jax.train.hosts.solo_watchdog import SoloWatchdog

from ...support.cluster import wait_until
from ...support.fake_time import FakeTime, fake_time

CONFIG = HostsConfig(stall_after=120, slow_after=1800)


class Watched:
    """A process that the watchdog looks at every second of a clock that the test moves."""

    def __init__(self, clock: FakeTime) -> None:
        self.clock, self.phases, self.exits = clock, PhaseTimer(), []
        self.watchdog = SoloWatchdog(self.phases, CONFIG, terminate=self.exits.append)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now += 1
            self.watchdog.look(self.clock.now)

    def take_steps(self, *, seconds: int) -> None:
        """Takes four steps: the first one compiles, and the last one does not end."""
        for step in range(1, 5):
            self.phases.enter("compile" if step == 1 else "step", step)
            self.pass_time(seconds)


@pytest.fixture
def watched(monkeypatch) -> Watched:
    monkeypatch.setattr(sys, "gettrace", lambda: None)  # coverage traces
    return Watched(fake_time(monkeypatch, phases_module, solo_watchdog))


def test_a_step_that_hangs_ends_the_process_with_42(watched: Watched, capfd) -> None:
    watched.take_steps(seconds=1)
    watched.pass_time(115)
    assert watched.exits == []
    watched.pass_time(10)
    assert watched.exits == [42]
    error = capfd.readouterr().err
    assert "stalled: step 4, step for 121 s (limit 120): " in error
    assert "Exit code 42; run the same command again to continue" in error
    assert "most recent call first" in error  # the stacks of all threads


def test_slow_steps_raise_the_limit(watched: Watched) -> None:
    watched.take_steps(seconds=100)
    watched.pass_time(880)
    assert watched.exits == []
    watched.pass_time(30)
    assert watched.exits == [42]


def test_the_first_steps_have_the_limit_of_a_compilation(watched: Watched) -> None:
    watched.phases.enter("compile", 1)
    watched.pass_time(1000)
    watched.phases.enter("step", 2)
    watched.pass_time(1790)
    assert watched.exits == []
    watched.pass_time(20)
    assert watched.exits == [42]


@pytest.mark.parametrize("phase", ["start", "finish"])
def test_reading_data_and_writing_results_have_no_limit(watched: Watched, phase) -> None:
    watched.phases.enter(phase)
    watched.pass_time(5000)
    assert watched.exits == []


def test_a_suspended_process_does_not_count_as_hanging(watched: Watched) -> None:
    watched.take_steps(seconds=1)
    watched.clock.now += 7 * 3600  # the laptop was closed
    watched.pass_time(100)
    assert watched.exits == []
    watched.pass_time(30)
    assert watched.exits == [42]


def test_time_in_a_debugger_does_not_count(watched: Watched, monkeypatch) -> None:
    watched.take_steps(seconds=1)
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    watched.pass_time(5000)
    assert watched.exits == []


def test_its_thread_looks_until_it_is_stopped(monkeypatch) -> None:
    monkeypatch.setattr(solo_watchdog, "_PERIOD", 0.001)
    looks: list[float] = []
    watchdog = SoloWatchdog(PhaseTimer(), CONFIG)
    monkeypatch.setattr(watchdog, "look", looks.append)
    watchdog.start()
    wait_until(lambda: len(looks) > 3, seconds=60, purpose="the thread")
    watchdog.stop()
