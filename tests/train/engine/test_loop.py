"""The training loop with a step that only adds: when it logs, evaluates, saves, stops and resumes."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.train.checkpoints.checkpointer import Checkpointer
from deberta_jax.train.engine.best import BestEvaluation
from deberta_jax.train.engine.divergence import TrainingError
from deberta_jax.train.engine.loop import TrainingRun, train
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.hosts.join import Hosts
from deberta_jax.train.reporting.jsonl import read_records
from deberta_jax.train.reporting.reporter import SilentReporter, open_reporter


class Numbers:
    """Batches 0, 1, 2, ... of one number."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.position += 1
        return {"number": np.array([self.position - 1], np.float32)}

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


@jax.jit
def add_noisy_number(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
    """Adds the batch and a random number that depends on the step."""
    total = state.params["total"] + batch["number"].sum() + jax.random.uniform(state.step_key())
    return dataclasses.replace(state, step=state.step + 1, params={"total": total}), {"loss": total}


def fresh_state() -> TrainState:
    return TrainState.create({"total": jnp.zeros(())}, {}, seed=3)


class Home:
    """A run in a folder: every call of `train` is a new start of the same command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts = Hosts()
        self.evaluated: list[int] = []
        self.best = BestEvaluation("score")

    def evaluate(self, state: TrainState) -> dict[str, float]:
        self.evaluated.append(int(state.step))
        figures = {"score": float(state.params["total"])}
        self.best.record(int(state.step), figures)
        return figures

    def train(self, **changes: Any) -> TrainState:
        steps = changes.get("steps", 10)
        with (
            Checkpointer(self.folder / "checkpoints", keep=2, identity={}) as checkpointer,
            open_reporter(self.folder, hosts=self.hosts, total_steps=steps, tokens_per_step=1, every=1) as reporter,
        ):
            options = {
                "steps": steps,
                "log_every": 2,
                "evaluate_every": 4,
                "save_every": 3,
                "profile": None,
                "profile_folder": self.folder / "profile",
                "step": add_noisy_number,
                "batches": Numbers(),
                "place_batch": lambda batch: batch,
                "summarize": lambda sums: {"loss": sums["loss"] / sums["steps"]},
                "evaluate": self.evaluate,
                "best": self.best,
                "checkpointer": checkpointer,
                "reporter": reporter,
                "hosts": self.hosts,
            }
            return train(fresh_state(), TrainingRun(**(options | changes)))

    @property
    def records(self) -> list[dict[str, Any]]:
        return read_records(self.folder / "metrics.jsonl")

    @property
    def saved(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "run")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, TrainState]:
    home = Home(tmp_path_factory.mktemp("uninterrupted"))
    return home, home.train()


def test_intervals_and_the_last_step(uninterrupted: tuple[Home, TrainState]) -> None:
    home, state = uninterrupted
    assert int(state.step) == 10
    assert [record["step"] for record in home.records if "loss" in record] == [2, 4, 6, 8, 10]
    assert home.evaluated == [4, 8, 10]
    assert home.saved == [9, 10]


def test_no_steps_evaluate_once_and_leave_the_next_run_alone(
    home: Home, uninterrupted: tuple[Home, TrainState]
) -> None:
    for _ in range(2):
        assert int(home.train(steps=0, step=None).step) == 0
    assert home.evaluated == [0, 0]
    assert home.records == [{"step": 0, "eval/score": 0.0}]
    assert home.saved == []
    home.best = BestEvaluation("score")
    home.train()
    assert home.records == uninterrupted[0].records
    home.evaluated.clear()
    home.train(steps=0, evaluate_every=0)
    assert home.evaluated == []


def test_a_checkpoint_holds_the_position_and_the_best_evaluation(uninterrupted: tuple[Home, TrainState]) -> None:
    """The keys are a format on disk."""
    home, state = uninterrupted
    manifest = json.loads((home.folder / "checkpoints" / "10" / "meta" / "metadata").read_text())
    best = {"step": 10, "value": float(state.params["total"]), "waited": 0, "unit": "fraction"}
    data = {"batches": {"position": 10}, "sums": {}, "owes_evaluation": False, "memory": best}
    assert manifest["content"]["data"] == data


def test_the_log_holds_means_since_the_last_line(home: Home) -> None:
    home.train(log_every=4)
    losses = [record["loss"] for record in home.records if "loss" in record]
    home.folder = home.folder.with_name("every")
    home.train(log_every=1)
    single = [record["loss"] for record in home.records if "loss" in record]
    assert losses == pytest.approx([np.mean(single[:4]), np.mean(single[4:8]), np.mean(single[8:])])


@pytest.mark.parametrize("stop_at", [5, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(
    home: Home, uninterrupted: tuple[Home, TrainState], monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Step 8 is due for an evaluation, which the next start makes up for."""
    with monkeypatch.context() as patch:
        patch.setattr(Hosts, "stop_requested", lambda hosts: hosts.phases.step == stop_at)
        with pytest.raises(StoppedError):
            home.train()
    assert stop_at in home.saved
    assert home.evaluated == [4]
    home.best = BestEvaluation("score")  # restored from the checkpoint
    state = home.train()
    expected_home, expected = uninterrupted
    assert state.params["total"] == expected.params["total"]
    assert home.records == expected_home.records
    assert home.best == expected_home.best


@pytest.mark.parametrize("stop_at", [4, 10])
def test_a_stop_during_an_evaluation_ends_it_and_the_next_start_repeats_it(
    home: Home, uninterrupted: tuple[Home, TrainState], monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Step 10 is the last one; the evaluation that a start makes up for can be stopped as well."""
    evaluate = home.evaluate

    def evaluate_and_check(state: TrainState) -> dict[str, float]:
        home.hosts.check_stop()
        return evaluate(state)

    with monkeypatch.context() as patch:
        stops = lambda hosts: (hosts.phases.step, hosts.phases.phase) == (stop_at, "evaluate")  # noqa: E731
        patch.setattr(Hosts, "stop_requested", stops)
        for _ in range(2):
            home.best = BestEvaluation("score")
            with pytest.raises(StoppedError, match=f"step {stop_at} is saved") as stopped:
                home.train(evaluate=evaluate_and_check)
            assert stopped.value.code == 42
            assert home.saved[-1] == stop_at
            assert stop_at not in home.evaluated
    home.best = BestEvaluation("score")
    state = home.train(evaluate=evaluate_and_check)
    expected_home, expected = uninterrupted
    assert state.params["total"] == expected.params["total"]
    assert home.records == expected_home.records
    assert home.best == expected_home.best


def test_a_killed_run_equals_an_uninterrupted_one(home: Home, uninterrupted: tuple[Home, TrainState]) -> None:
    def killed(state: TrainState, batch: Any) -> Any:
        if int(state.step) == 7:
            raise KeyboardInterrupt
        return add_noisy_number(state, batch)

    with pytest.raises(KeyboardInterrupt):
        home.train(step=killed)
    assert home.train().params["total"] == uninterrupted[1].params["total"]
    assert home.records == uninterrupted[0].records


def test_a_finished_run_does_nothing(uninterrupted: tuple[Home, TrainState]) -> None:
    home, expected = uninterrupted
    before = home.records
    assert home.train(step=None).params["total"] == expected.params["total"]
    assert home.records == before


@pytest.mark.parametrize(
    ("broken", "kept"), [(2, "there is no checkpoint yet"), (5, "the checkpoint of step 3 is kept")]
)
def test_a_loss_that_is_not_finite_stops_the_run(home: Home, broken: int, kept: str) -> None:
    def diverge(state: TrainState, batch: Any) -> Any:
        state, metrics = add_noisy_number(state, batch)
        return state, {"loss": jnp.where(state.step == broken, jnp.nan, metrics["loss"])}

    with pytest.raises(TrainingError, match=rf"loss not finite at step {broken} \(nan\); {kept}\. Try a lower"):
        home.train(step=diverge)
    assert all(step < broken for step in home.saved)


def test_a_diverged_step_is_not_saved(home: Home) -> None:
    def diverge(state: TrainState, batch: Any) -> Any:
        return add_noisy_number(state, batch)[0], {"loss": jnp.asarray(jnp.nan)}

    with pytest.raises(TrainingError, match=r"at step 1 .*there is no checkpoint yet"):
        home.train(step=diverge, save_every=1)
    assert home.saved == []


def test_parameters_that_are_not_finite_after_the_last_step_are_not_saved(home: Home) -> None:
    """No later loss would show them."""

    def diverge(state: TrainState, batch: Any) -> Any:
        state, metrics = add_noisy_number(state, batch)
        return dataclasses.replace(state, params={"total": jnp.where(state.step == 10, jnp.inf, 1.0)}), metrics

    with pytest.raises(TrainingError, match=r"^total not finite after step 10; the checkpoint of step 9 is kept"):
        home.train(step=diverge)
    assert home.saved[-1] == 9
    assert 10 not in home.evaluated


def test_no_improvement_ends_training_early(home: Home) -> None:
    """The score is the same at every evaluation: steps 2 and 3 bring no improvement over step 1."""
    home.best = BestEvaluation("score", patience=2)

    def evaluate(state: TrainState) -> dict[str, float]:
        home.best.record(int(state.step), {"score": 1.0})
        return {"score": 1.0}

    assert int(home.train(evaluate=evaluate, evaluate_every=1).step) == 3
    assert home.saved[-1] == 3
    home.best = BestEvaluation("score", patience=2)
    assert int(home.train(evaluate=evaluate, evaluate_every=1).step) == 3  # still ended


def test_intervals_of_zero_leave_the_last_checkpoint(home: Home) -> None:
    home.train(evaluate_every=0, save_every=0)
    assert home.evaluated == []
    assert home.saved == [10]


def test_a_new_shape_is_a_phase_of_compilation(home: Home) -> None:
    sizes = itertools.cycle([1, 2])

    class Ragged(Numbers):
        def __next__(self) -> dict[str, np.ndarray]:
            return {"number": np.zeros(next(sizes), np.float32)}

    phases: list[str] = []
    enter = home.hosts.phases.enter
    home.hosts.phases.enter = lambda phase, *step: (phases.append(phase), enter(phase, *step))[1]  # type: ignore
    home.train(batches=Ragged(), steps=4, evaluate_every=0, save_every=0)
    assert [phase for phase in phases if phase in ("compile", "step")] == ["compile", "compile", "step", "step"]
    assert (phases[0], phases[-1]) == ("restore", "finish")


def test_the_profiler_records_the_steps_of_the_setting(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(f"start {Path(folder).name}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))

    def step(state: TrainState, batch: Any) -> Any:
        events.append(int(state.step) + 1)
        return add_noisy_number(state, batch)

    home.train(step=step, steps=5, profile=(2, 3))
    assert events == [1, "start profile", 2, 3, "stop", 4, 5]
    events.clear()
    home.folder = home.folder.with_name("past the end")
    home.train(step=step, steps=2, profile=(2, 9))
    assert events == [1, "start profile", 2, "stop"]


def test_other_processes_log_nothing(tmp_path: Path) -> None:
    hosts = Hosts()
    hosts.first = False
    with open_reporter(tmp_path, hosts=hosts, total_steps=1, tokens_per_step=1, every=1) as reporter:
        assert isinstance(reporter, SilentReporter)
        reporter.resume_at(0)
        reporter.step(1, {"loss": 1.0})
        reporter.evaluation(1, {"loss": 1.0})
        reporter.message("saved")
    assert list(tmp_path.iterdir()) == []
