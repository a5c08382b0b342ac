"""The loop of pre-training and fine-tuning: dispatch, read the step before, evaluate, save, stop on nonsense."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from deberta_jax.errors import UserError

from ..checkpoints.checkpointer import Checkpointer
from ..hosts.join import Hosts
from ..reporting.reporter import Log
from .state import TrainState

Sums = dict[str, float]


class TrainingError(UserError):
    """Training cannot go on; the message says why, at which step and what is left on disk."""


class Batches(Protocol):
    """An endless stream of batches (this process's rows) whose place can be saved and set."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Memory(Protocol):
    """What evaluations have come to; saved with every checkpoint. `done`: training may end before its last step."""

    @property
    def done(self) -> bool: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train, and what happens every so many steps. 0: never, but for the last step's save."""

    steps: int
    log_every: int
    evaluate_every: int
    save_every: int
    profile: tuple[int, int] | None = None  # first and last step to record

    def __post_init__(self) -> None:
        for name in ("steps", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


def train(  # noqa: PLR0915 - reads as prose
    state: TrainState,
    *,
    plan: Plan,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    batches: Batches,
    place: Callable[[dict[str, np.ndarray]], Any],
    figures: Callable[[Sums], dict[str, float]],
    evaluate: Callable[[TrainState], dict[str, float]],
    checkpointer: Checkpointer,
    reporter: Log,
    hosts: Hosts,
    profile_folder: Path,
    memory: Memory | None = None,
) -> TrainState:
    """Trains to the last step, from the newest good checkpoint if there is one.

    Resuming restores, in this order: the state (parameters, optimizers, step, rng), the place in the data, the sums
    that the next line of the log averages, and the memory of evaluations. A resumed run is bit for bit the unbroken
    one; an evaluation that was due when it was stopped is made up for.

    Args:
      step: the jitted step, which donates its state. Its metrics are summed between two lines of the log.
      place: puts a batch onto the devices.
      figures: turns those sums, with "steps" among them, into the figures to report.
      evaluate: figures of held-out data.
      memory: kept by `evaluate`; where it is `done`, the step is saved and training ends.
      profile_folder: where the steps of plan.profile are recorded.

    Raises:
      TrainingError: a loss or gradient norm is not finite. The step is named, the last good checkpoint kept.
      CheckpointError: no checkpoint can be read, they belong to another configuration, or saving failed.
      StoppedError: SIGTERM on any process, or out of time; the last step taken is saved.
    """
    activity = hosts.phases
    activity.enter("restore")
    sums: Sums = {}
    restored = checkpointer.restore(jax.tree.map(_abstract, state))
    if restored is not None:
        state = restored.state
        batches.set_state(restored.data["batches"])
        sums = restored.data["sums"]
        if memory is not None:
            memory.set_state(restored.data["memory"])
    first = int(state.step) + 1
    reporter.resume_at(first - 1)
    unread: tuple[int, dict[str, jax.Array]] | None = None
    compiled: set[tuple] = set()  # the shapes of batches that there is a program for
    with hosts.listening(), _profiler(plan.profile, profile_folder) as record:
        if restored is not None and restored.data.get("owes_evaluation"):
            activity.enter("evaluate", first - 1)
            reporter.evaluation(first - 1, evaluate(state))
        for number in range(first, plan.steps + 1):
            if memory is not None and memory.done:
                break
            activity.enter("input", number)
            batch = next(batches)
            shapes = tuple((name, value.shape) for name, value in batch.items())
            activity.enter("step" if shapes in compiled else "compile")
            compiled.add(shapes)
            record(number, unread)
            state, metrics = step(state, place(batch))
            if unread is not None:
                sums = _read(*unread, sums, plan, figures, reporter, checkpointer)
            unread = (number, metrics)
            stopping = hosts.stop_requested(number) and number < plan.steps
            evaluating = plan.evaluate_every > 0 and _due(number, plan.evaluate_every, plan.steps)
            saving = stopping or _due(number, plan.save_every, plan.steps)
            if evaluating or saving:
                # Nothing is saved, or measured, before this very step is known to be finite.
                sums = _read(*unread, sums, plan, figures, reporter, checkpointer)
                unread = None
            if evaluating and not stopping:
                activity.enter("evaluate")
                reporter.evaluation(number, evaluate(state))
            if saving or (memory is not None and memory.done):
                activity.enter("save")
                data = {"batches": batches.get_state(), "sums": sums, "owes_evaluation": evaluating and stopping}
                checkpointer.save(number, state, data | ({"memory": memory.get_state()} if memory else {}))
            if stopping:
                checkpointer.wait()
                stopped = hosts.stopped(number)
                reporter.message(str(stopped))
                raise stopped
        activity.enter("save")
        checkpointer.wait()
    activity.enter("finish")
    return state


@contextlib.contextmanager
def _profiler(
    steps: tuple[int, int] | None, folder: Path
) -> Iterator[Callable[[int, tuple[int, dict[str, jax.Array]] | None], None]]:
    """Gives a function to call before each step; it records the steps from the first to the last of `steps`."""
    running = False

    def record(number: int, unread: tuple[int, dict[str, jax.Array]] | None) -> None:
        nonlocal running
        if steps is None or (running and number <= steps[1]) or (not running and number != steps[0]):
            return
        if unread is not None:
            jax.block_until_ready(unread[1])  # the step before belongs to this side of the line
        if running:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(folder))
        running = not running

    try:
        yield record
    finally:
        if running:
            jax.profiler.stop_trace()


def _read(
    number: int,
    metrics: dict[str, jax.Array],
    sums: Sums,
    plan: Plan,
    figures: Callable[[Sums], dict[str, float]],
    reporter: Log,
    checkpointer: Checkpointer,
) -> Sums:
    """Fetches one step's metrics, checks them, adds them up, and reports where a line is due."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        kept = checkpointer.latest_step()
        left = f"the checkpoint of step {kept} is kept" if kept is not None else "there is no checkpoint yet"
        raise TrainingError(
            f"{', '.join(broken)} not finite at step {number} ({', '.join(str(values[name]) for name in broken)}); "
            f"{left}. Try a lower learning rate or a longer warmup"
        )
    sums = {name: sums.get(name, 0.0) + value for name, value in (values | {"steps": 1.0}).items()}
    if _due(number, plan.log_every, plan.steps):
        reporter.step(number, figures(sums))
        return {}
    return sums


def _due(number: int, every: int, last: int) -> bool:
    return number == last or (every > 0 and number % every == 0)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
