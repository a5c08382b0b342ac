"""A clock that a test sets: it replaces the module `time` inside one module of the library."""

from collections.abc import Callable
from types import ModuleType

import pytest


class FakeTime:
    """Has the functions of the module `time` that the library uses. Sleeping returns at once and moves the clock.

    Attributes:
      now: the time in seconds.
      pauses: the arguments of all calls of `sleep`.
      on_sleep: called by every `sleep`, for instance to repair what the sleeping code waits for.
    """

    def __init__(self, on_sleep: Callable[[], object] = lambda: None) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.on_sleep = on_sleep

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.on_sleep()


def fake_time(
    monkeypatch: pytest.MonkeyPatch, *modules: ModuleType, on_sleep: Callable[[], object] = lambda: None
) -> FakeTime:
    """Replaces the clock of the given modules until the end of a test."""
    clock = FakeTime(on_sleep)
    for module in modules:
        monkeypatch.setattr(module, "time", clock)
    return clock
