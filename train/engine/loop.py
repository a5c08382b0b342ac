"""The training loop of pre-training and fine-tuning: steps, metrics, evaluations, checkpoints and early stops."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Float

from deberta_jax.parameter_check import nonfinite_parameters

from ..checkpoints.checkpointer import Checkpointer
from ..hosts.exit_codes import StopRequested
from ..hosts.join import Hosts
from ..reporting.goodput import describe_start
from ..reporting.reporter import Reporter
from .best import BestEvaluation
from .divergence import TrainingError
from .state import TrainState

StepMetrics = dict[str, Float[Array, ""]]  # of one step, on the devices
Sums = dict[str, float]  # of the metrics of several steps, and "steps", their number
Figures = dict[str, float]  # for the log


class Batches(Protocol):
    """An endless stream of batches (this process's rows) whose position can be saved and restored."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Everything that the loop needs apart from the state. The intervals are numbers of steps; 0 disables them.

    Attributes:
      steps: the last step; 0 trains nothing and evaluates once, if evaluations are not disabled.
      log_every: interval between two lines of the log, at least 1.
      evaluate_every: interval between evaluations; one follows the last step as well.
      save_every: interval between checkpoints; the last step is always saved.
      profile: first and last step to record with JAX's profiler.
      profile_folder: folder for the recording.
      step: the jitted training step. It donates its state, and its metrics are summed until the next line of the log.
      batches: the training batches.
      place_batch: puts a batch onto the devices.
      summarize: computes the figures of the log from the sums.
      position: further figures of the log, which depend on the step alone, such as the epoch.
      evaluate: computes the figures of held-out data; calls `hosts.check_stop` after each batch.
      evaluate_first: evaluate the initial state too, before step 1.
      best: the best evaluation, which `evaluate` updates; ends training early (default: no early stopping).
      checkpointer: saves and restores.
      reporter: the log.
      hosts: the processes of the run.
    """

    steps: int
    log_every: int
    evaluate_every: int
    save_every: int
    profile: tuple[int, int] | None
    profile_folder: Path
    step: Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
    batches: Batches
    place_batch: Callable[[dict[str, np.ndarray]], Any]
    summarize: Callable[[Sums], Figures]
    position: Callable[[int], Figures] = lambda step: {}
    evaluate: Callable[[TrainState], Figures]
    evaluate_first: bool = False
    best: BestEvaluation | None = None
    checkpointer: Checkpointer
    reporter: Reporter
    hosts: Hosts

    @property
    def should_stop_early(self) -> bool:
        return self.best is not None and self.best.should_stop

    def is_due(self, number: int, every: int) -> bool:
        """Returns whether something with this interval happens after step `number`; after the last one it always does.

        An interval of 0 leaves only the last step.
        """
        return number == self.steps or (every > 0 and number % every == 0)


def train(state: TrainState, run: TrainingRun) -> TrainState:
    """Trains to the last step, from the newest good checkpoint if there is one, and returns the final state.

    A resumed run equals an uninterrupted one bit for bit. An evaluation that was due or had begun when the run was
    stopped is made up for.

    Raises:
      TrainingError: if a loss, a gradient norm or a parameter is not finite. The last good checkpoint is kept.
      CheckpointError: if no checkpoint can be read, if they belong to another configuration, or if saving failed.
      StoppedError: if a process received SIGTERM or time ran out. The last step is saved. An evaluation ends after the
        current batch.
    """
    phases = run.hosts.phases
    phases.enter("restore")
    resumed = _restore(state, run)
    state, metrics = resumed.state, _MetricsReader(run, resumed.sums)
    first = int(state.step) + 1
    run.reporter.resume_at(first - 1)
    compiled: set[tuple] = set()  # shapes of the batches for which the step was compiled
    with run.hosts.listening(), _profiler(run, metrics) as start_or_stop_profiler:
        initial = first == 1 and (run.evaluate_first or (run.steps == 0 and run.evaluate_every > 0))
        evaluating = resumed.owes_evaluation or initial
        if evaluating and not _evaluate(first - 1, state, run):
            raise run.hosts.stopped(first - 1, log=run.reporter.message)
        for number in range(first, run.steps + 1):
            if run.should_stop_early:
                break
            phases.enter("input", number)
            batch = next(run.batches)
            shapes = tuple((name, value.shape) for name, value in batch.items())
            phases.enter("step" if shapes in compiled else "compile")
            compiled.add(shapes)
            start_or_stop_profiler(number)
            state, step_metrics = run.step(state, run.place_batch(batch))  # JAX returns before the step is done
            metrics.add(number, step_metrics)
            if phases.to_first_step is None:
                phases.enter("first step")
                metrics.wait()
                run.reporter.message(describe_start(phases.end_first_step()))
            stopping = run.hosts.stop_requested() and number < run.steps
            evaluating = run.evaluate_every > 0 and run.is_due(number, run.evaluate_every)
            saving = stopping or run.is_due(number, run.save_every)
            if evaluating or saving:
                metrics.read()  # raises before anything of a diverged step is evaluated or saved
                _require_finite_parameters(number, state, run)  # which the next loss would show, if there is one
            if evaluating and not stopping:
                stopping = not _evaluate(number, state, run)
            if saving or stopping or run.should_stop_early:
                phases.enter("save")
                _save(number, state, run, metrics.sums, owes_evaluation=evaluating and stopping)
            if stopping:
                run.checkpointer.wait()
                raise run.hosts.stopped(number, log=run.reporter.message)
        phases.enter("save")
        run.checkpointer.wait()
    phases.enter("finish")
    return state


def _evaluate(number: int, state: TrainState, run: TrainingRun) -> bool:
    """Evaluates and logs the state after step `number`. Returns False if a stop was requested meanwhile."""
    run.hosts.phases.enter("evaluate", number)
    try:
        figures = run.evaluate(state)
    except StopRequested:
        return False
    run.reporter.evaluation(number, figures)
    return True


# -------------------------------------------------------------------- checkpoints


@dataclasses.dataclass(frozen=True)
class _Resumed:
    """The state to start from, the sums since the last line of the log, and whether an evaluation was left out."""

    state: TrainState
    sums: Sums
    owes_evaluation: bool


def _restore(state: TrainState, run: TrainingRun) -> _Resumed:
    """Restores the newest good checkpoint, the position in the data and the best evaluation, or returns `state`."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    restored = run.checkpointer.restore(shapes)
    if restored is None:
        return _Resumed(state, {}, owes_evaluation=False)
    run.reporter.message(f"resumed after step {restored.step}")
    run.batches.set_state(restored.data["batches"])
    if run.best is not None and run.best.set_state(restored.data["memory"]):
        run.reporter.message(
            f"metrics.jsonl has evaluations up to step {restored.step} in percent, as an earlier version wrote them; "
            "later ones are fractions"
        )
    return _Resumed(restored.state, restored.data["sums"], restored.data.get("owes_evaluation", False))


def _save(number: int, state: TrainState, run: TrainingRun, sums: Sums, *, owes_evaluation: bool) -> None:
    data = {"batches": run.batches.get_state(), "sums": sums, "owes_evaluation": owes_evaluation}
    if run.best is not None:
        data["memory"] = run.best.get_state()
    run.checkpointer.save(number, state, data)


# -------------------------------------------------------------------- metrics


class _MetricsReader:
    """Reads the metrics of each step after the next one was dispatched, so that the devices never wait for the host.

    Attributes:
      sums: the metrics of the steps since the last line of the log.
    """

    def __init__(self, run: TrainingRun, sums: Sums) -> None:
        self._run, self.sums = run, sums
        self._unread: tuple[int, StepMetrics] | None = None

    def add(self, number: int, metrics: StepMetrics) -> None:
        """Reads the metrics of the previous step and keeps those of step `number`, which may not be computed yet."""
        self.read()
        self._unread = (number, metrics)

    def read(self) -> None:
        """Waits for the unread metrics, checks and sums them, and logs a line if one is due.

        Raises:
          TrainingError: if one is not finite.
        """
        if self._unread is None:
            return
        (number, metrics), self._unread = self._unread, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._require_finite(number, values)
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in (values | {"steps": 1.0}).items()}
        if self._run.is_due(number, self._run.log_every):
            self._run.reporter.step(number, self._run.summarize(self.sums) | self._run.position(number))
            self.sums = {}

    def wait(self) -> None:
        """Waits until the devices have finished the unread step."""
        if self._unread is not None:
            jax.block_until_ready(self._unread[1])

    def _require_finite(self, number: int, values: dict[str, float]) -> None:
        broken = {name: value for name, value in values.items() if not math.isfinite(value)}
        if broken:
            raise TrainingError(
                f"{', '.join(broken)} not finite at step {number} ({', '.join(map(str, broken.values()))}); "
                f"{_advice(self._run)}"
            )


def _require_finite_parameters(number: int, state: TrainState, run: TrainingRun) -> None:
    """Raises TrainingError if a parameter is not finite after step `number`: finite gradients do not exclude it."""
    if broken := nonfinite_parameters(state.params):
        others = f" and {len(broken) - 1} more parameters" if len(broken) > 1 else ""
        raise TrainingError(f"{broken[0]}{others} not finite after step {number}; {_advice(run)}")


def _advice(run: TrainingRun) -> str:
    saved = run.checkpointer.latest_step()
    kept = f"the checkpoint of step {saved} is kept" if saved is not None else "there is no checkpoint yet"
    return f"{kept}. Try a lower learning rate or a longer warmup"


@contextlib.contextmanager
def _profiler(run: TrainingRun, metrics: _MetricsReader) -> Iterator[Callable[[int], None]]:
    """Yields a function to call before each step, which starts and stops JAX's profiler as `run.profile` asks."""
    running = False

    def start_or_stop(number: int) -> None:
        nonlocal running
        if run.profile is None:
            return
        first, last = run.profile
        if (not running and number == first) or (running and number > last):
            metrics.wait()  # the previous step must not run into the recording, or out of it
            if running:
                jax.profiler.stop_trace()
            else:
                jax.profiler.start_trace(str(run.profile_folder))
            running = not running

    try:
        yield start_or_stop
    finally:
        if running:
            jax.profiler.stop_trace()
