"""The time of a process, by phase."""

from deberta_jax.train.hosts import phases
from deberta_jax.train.hosts.phases import PHASES, PhaseTimer

from ...support.fake_time import fake_time


def test_every_moment_belongs_to_one_phase(monkeypatch) -> None:
    clock = fake_time(monkeypatch, phases)
    timer = PhaseTimer()
    for number, phase in enumerate(PHASES, start=1):
        timer.enter(phase, step=number)
        clock.now += number
    timer.enter("step")  # of the same training step
    clock.now += 0.5
    assert timer.seconds() == {phase: number + 0.5 * (phase == "step") for number, phase in enumerate(PHASES, start=1)}
    assert timer.elapsed == sum(timer.seconds().values()) == 36.5
    assert (timer.phase, timer.step, timer.since) == ("step", len(PHASES), clock.now - 0.5)


def test_the_innermost_functions_are_those_of_the_main_thread() -> None:
    assert "test_the_innermost_functions_are_those_of_the_main_thread" in PhaseTimer().innermost_functions()
