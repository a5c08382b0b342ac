"""Evaluation while fine-tuning, and the results of a run: predictions, metrics and the chosen model."""

import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax.atomic_files import write_file
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.sharding import compiler_options, local_batch_indices, place_batch
from deberta_jax.strict_json import to_json

from .configs import FinetuneConfig
from .engine.best import BestEvaluation
from .engine.loop import Figures
from .engine.state import TrainState
from .hosts.join import Hosts
from .reporting.jsonl import write_records
from .reporting.pictures import draw_or_report
from .reporting.reporter import Reporter
from .sweep import Results
from .tasks.base import Predictions, Task
from .tasks.batches import evaluation_batches
from .tasks.metrics import lower_is_better
from .tasks.predictions import BatchPredictions
from .tuning import Params, Tuning

_LARGE = 100e6  # bytes of predictions that are worth a message


def apply_model(model: Any, params: Params, batch: dict[str, jax.Array], **options: Any) -> Any:
    """Returns the model's output for a batch. `variables` are added to the parameters; other options go to `apply`."""
    variables = {"params": params, **options.pop("variables", {})}
    return model.apply(
        variables, batch["input_ids"], batch["attention_mask"], token_type_ids=batch["token_type_ids"], **options
    )


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Predicts the examples of a task's splits with a model, in batches over all hosts.

    Attributes:
      check_stop: called after each batch; may raise to end the prediction.
    """

    config: FinetuneConfig
    task: Task
    model: Any
    mesh: Mesh
    check_stop: Callable[[], None]

    def predict(self, params: Params, split: str) -> Predictions:
        """Returns what the model predicts for each example of a split, in their order, on every host."""
        encoded = self.task.splits[split]
        predictions = BatchPredictions(len(encoded.lengths))
        batches = evaluation_batches(
            encoded,
            batch_size=self.config.batch_size,
            max_length=self.config.data.max_length,
            batch_indices=local_batch_indices(self.mesh, self.config.batch_size),
        )
        for indices, batch in batches:
            arrays = jax.device_get(self._predict_batch(params, place_batch(batch, self.mesh)))
            predictions.add(indices, arrays)  # the last batch is filled up with copies, which `indices` does not list
            self.check_stop()
        return predictions

    @functools.cached_property
    def _predict_batch(self) -> Any:
        def predict(params: Params, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return self.task.objective.predict(apply_model(self.model, params, batch), batch)

        # Replicated, so that every host can read the predictions of the whole batch.
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(predict, out_shardings=replicated, compiler_options=compiler_options(self.mesh))


class Validation:
    """Evaluates the validation split during training and chooses the model that is the result.

    With `select` "best" the model of the best evaluation, of LoRA its adapter, is kept in best/ of the run's folder.
    """

    def __init__(self, predictor: Predictor, model_config: DebertaConfig, tuning: Tuning) -> None:
        self._predictor, self._model_config, self._tuning = predictor, model_config, tuning
        self._config = predictor.config
        self._newest: tuple[int, Predictions] | None = None  # step and predictions of the newest evaluation
        metric = predictor.task.main_metric
        # Earlier versions had the scores of answers as texts in percent: those of ReCoRD and of spans without classes.
        percent = metric == "answer_f1" or (metric == "f1" and not predictor.task.label_names)
        self.best = BestEvaluation(
            metric,
            self._config.selection.patience,
            once_in_percent=percent,
            lower_is_better=lower_is_better(metric),
        )

    @property
    def _selects_best(self) -> bool:
        return self._config.selection.select == "best"

    def evaluate(self, state: TrainState) -> Figures:
        """Computes the metrics of the validation split, and saves the model if they are the best so far."""
        step, trained = int(state.step), state.params["model"]
        self._newest = None  # frees the memory of the previous predictions
        self._newest = (step, self._predictor.predict(self._tuning.whole(trained), "validation"))
        figures = self._predictor.task.score("validation", self._newest[1])
        if self.best.record(step, figures) and self._selects_best:
            self._tuning.save(self._config.output / "best", self._model_config, trained)
        return figures

    def chosen_params(self, state: TrainState, reporter: Reporter) -> Params:
        """Returns the trained parameters of the last step or, with select "best", those of the best evaluation.

        The latter are read from best/ on all hosts, and the choice is reported. If no evaluation gave a number, the
        last parameters are returned.

        Raises:
          UserError: if best/ cannot be read (see `Tuning.load`).
        """
        best = self.best
        if not self._selects_best:
            return state.params["model"]
        if best.step is None:
            reporter.message(f"no evaluation gave a number for {best.metric}: the last model is the result")
            return state.params["model"]
        reporter.message(f"the best evaluation was that of step {best.step}: {best.metric} {best.value:.4f}")
        return self._tuning.load(self._config.output / "best", self._predictor.mesh)

    def known_predictions(self, state: TrainState) -> dict[str, Predictions]:
        """Returns predictions of the chosen model that an evaluation has already made, by split."""
        if self._selects_best or self._newest is None or self._newest[0] != int(state.step):
            return {}
        return {"validation": self._newest[1]}


def check_predictions_size(task: Task, output: Path, reporter: Reporter) -> None:
    """Reports before training how large the predictions will be, if they are large.

    Raises:
      UserError: if the disk has less room than they need.
    """
    sizes = {name: len(task.examples[name]) * task.record_size(name) for name in task.splits if name != "train"}
    total = sum(sizes.values())
    of_splits = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.items())
    if total > (free := shutil.disk_usage(output).free):
        raise UserError(
            f"the predictions will need about {total / 1e6:,.0f} MB ({of_splits}), but the disk of {output} has "
            f"{free / 1e6:,.0f} MB left; free some space, or write less with a smaller --top-k (of spans --n-best)"
        )
    if total > _LARGE:
        reporter.message(
            f"the predictions will need about {total / 1e6:,.0f} MB ({of_splits}); a smaller --top-k (of spans "
            "--n-best) makes them smaller"
        )


class Written(NamedTuple):
    """The metrics of each labeled split, and the predictions for it."""

    results: Results
    predictions: dict[str, Predictions]


def write_results(
    predictor: Predictor, params: Params, known: dict[str, Predictions], hosts: Hosts, reporter: Reporter
) -> Written:
    """Predicts all splits but "train", and writes predictions/ and results.json on the first host.

    Args:
      predictor: the model without its parameters.
      params: the parameters of the chosen model.
      known: predictions that need not be made again, by split.
      hosts: the processes of the run.
      reporter: receives the metrics.
    """
    task, output = predictor.task, predictor.config.output
    written = Written({}, {})
    for name, split in task.splits.items():
        if name == "train":
            continue
        predictions = known.get(name) or predictor.predict(params, name)
        task = task.tuned(predictions) if name == "validation" else task
        if split.labeled:
            figures = written.results[name] = task.score(name, predictions)
            written.predictions[name] = predictions
            reporter.message(f"{name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in figures.items()))
            if undefined := [metric for metric, value in figures.items() if not math.isfinite(value)]:
                reason = why_undefined(task.records(name, predictions))
                reporter.message(f"{name}: {', '.join(undefined)} undefined, null in results.json, because {reason}")
        records = task.records(name, predictions)
        if hosts.first:
            file = output / "predictions" / f"{name}.jsonl"
            write_records(file, records)
            reporter.message(f"saved {file}")
        elif not split.labeled:
            next(records, None)  # raises, as on the first host, if a prediction is not finite
    if hosts.first:
        write_file(output / "results.json", to_json(written.results | task.extra_results, indent=2) + "\n")
    return written


def why_undefined(records: Iterable[dict[str, Any]]) -> str:
    """Returns why a metric of a split is not a number, from the records of its predictions (see `Task.records`)."""
    pairs = [(record.get("label"), record.get("prediction")) for record in records]
    for position, name in enumerate(("labels", "predictions")):
        values = {pair[position] for pair in pairs}
        if len(values) == 1 and None not in values:
            return f"all {name} are {values.pop()}"
    return "it has no value for these labels and predictions"


def draw_predictions(predictor: Predictor, predictions: dict[str, Predictions], reporter: Reporter) -> None:
    """Draws the pictures of predictions/, on the first host. A picture that fails is reported in one line."""
    for name, of_split in predictions.items():
        draw_or_report(
            predictor.config.output / "predictions" / f"{name}.png",
            lambda path, name=name, of_split=of_split: predictor.task.plot(path, name, of_split),
            log=reporter.message,
        )
