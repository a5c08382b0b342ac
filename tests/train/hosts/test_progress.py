"""The verdict of the watchdog: which process has died or hangs, from the reports of all processes."""

import dataclasses

import pytest

from deberta_jax.train.configs import HostsConfig
from deberta_jax.train.hosts.progress import Progress, Report

NAMES = ["process 0 on a", "process 1 on b", "process 2 on c"]
CONFIG = HostsConfig(dead_after=30, stall_after=120, slow_after=1800)


def report(phase: str, step: int = 7, *, seconds: float = 0.0, beat: int = 1) -> Report:
    return Report(beat=beat, step=step, phase=phase, seconds=seconds, where="loop.py:74 train")


class View:
    """What one process sees: all processes report every ten seconds, as time passes."""

    def __init__(self, index: int = 0) -> None:
        self.progress = Progress(index, NAMES, CONFIG)
        self.index, self.now, self.beat = index, 0.0, 0
        self.reports: dict[int, Report] = {}
        self.progress.start(self.now)

    def enter(self, process: int, phase: str, step: int = 7) -> None:
        self.reports[process] = report(phase, step)

    def pass_time(self, seconds: int, *, silent: tuple[int, ...] = ()) -> str | None:
        """Returns the first verdict within so many seconds. All processes stay in their phases."""
        for _ in range(seconds // 10):
            self.now, self.beat = self.now + 10, self.beat + 1
            for process, old in self.reports.items():
                if not old.finished and process not in silent:
                    self.reports[process] = dataclasses.replace(old, beat=self.beat, seconds=old.seconds + 10)
            self.progress.record(self.reports, self.now)
            if (verdict := self.progress.failure(self.reports[self.index], self.now)) is not None:
                return verdict
        return None


def test_nobody_is_blamed_while_all_take_steps() -> None:
    view = View()
    for step in range(1, 20):
        for process in range(3):
            view.enter(process, "step", step)
        assert view.pass_time(60) is None


def test_a_process_that_falls_silent_is_lost() -> None:
    view = View()
    for process in range(3):
        view.enter(process, "step")
    assert view.pass_time(10) is None
    assert view.pass_time(30, silent=(1,)) is None
    assert view.pass_time(10, silent=(1,)) == "lost process 1 on b: nothing heard for 30 s"
    last = "process 1 on b: step 7, step for 10.0 s, heard 40 s ago; loop.py:74 train"
    assert last in view.progress.describe(view.now)


def test_a_process_that_never_reports_is_lost() -> None:
    view = View()
    for process in (0, 2):
        view.enter(process, "step")
    assert view.pass_time(30) is None
    assert view.pass_time(10) == "lost process 1 on b: nothing heard for 30 s"
    assert "process 1 on b: never heard of" in view.progress.describe(view.now)


def test_a_service_that_does_not_answer_means_that_process_0_is_lost() -> None:
    view = View(index=1)
    for process in range(3):
        view.enter(process, "step")
    assert view.pass_time(100) is None
    mine = view.reports[1]
    assert view.progress.failure(mine, view.now + 30) is None
    assert view.progress.failure(mine, view.now + 31) == "lost process 0 on a: nothing heard for 30 s"


def test_a_process_that_has_finished_is_not_missed() -> None:
    view = View()
    for process in range(3):
        view.enter(process, "step")
    view.reports[1] = view.reports[1].as_finished()
    assert view.pass_time(60) is None
    view.enter(0, "step", 8)
    view.enter(2, "step", 8)
    assert view.pass_time(60) is None
    assert "process 1 on b: step 7, step for 0.0 s, ended; loop.py:74 train" in view.progress.describe(view.now)


def test_the_process_that_is_furthest_behind_is_blamed() -> None:
    """Process 2 waits for its data; the others have begun the step and wait for process 2."""
    view = View()
    view.enter(2, "input")
    for process in (0, 1):
        view.enter(process, "step")
    assert view.pass_time(120) is None
    assert view.pass_time(10) == (
        "stalled: process 0 on a has been in step 7, step for 130 s (limit 120). All wait for process 2 on c"
    )


def test_time_counts_from_when_the_process_that_is_furthest_behind_went_on() -> None:
    view = View()
    view.enter(0, "step", 8)
    view.enter(1, "step", 8)
    view.enter(2, "step", 7)
    assert view.pass_time(110) is None
    view.enter(2, "step", 8)
    assert view.pass_time(120) is None
    assert view.pass_time(10) is not None


@pytest.mark.parametrize("compiling", [{0, 1, 2}, {2}])
def test_slow_phases_may_last_longer_and_so_may_the_wait_for_one(compiling: set[int]) -> None:
    view = View()
    for process in range(3):
        view.enter(process, *(("compile", 1) if process in compiling else ("step", 2)))
    assert view.pass_time(1800) is None
    for process in compiling:  # from now on they have the limit of a step
        view.enter(process, "step", 2)
    assert view.pass_time(120) is None
    verdict = view.pass_time(10)
    assert verdict is not None
    assert "(limit 120)" in verdict


def test_a_report_survives_the_store() -> None:
    mine = report("save", 12, seconds=3.5, beat=4)
    assert Report.from_json(mine.to_json()) == mine
    assert not mine.finished
    assert mine.as_finished().finished
