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
    assert timer.elapsed == sum(timer.seconds().values()) == sum(range(1, len(PHASES) + 1)) + 0.5
    assert (timer.phase, timer.step, timer.since) == ("step", len(PHASES), clock.now - 0.5)


def test_imports_are_from_the_start_of_the_process_to_that_of_the_timer(monkeypatch) -> None:
    clock = fake_time(monkeypatch, phases)
    timer = PhaseTimer(began=clock.now - 3)
    clock.now += 2
    assert timer.to_first_step is None
    spent = timer.end_first_step()
    clock.now += 1
    assert {phase: value for phase, value in spent.items() if value} == {"import": 3, "start": 2}
    assert timer.to_first_step == spent
    assert timer.elapsed == 6


def test_the_innermost_functions_are_those_of_the_main_thread() -> None:
    assert "test_the_innermost_functions_are_those_of_the_main_thread" in PhaseTimer().innermost_functions()
