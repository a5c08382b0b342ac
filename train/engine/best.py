"""The best evaluation so far, for choosing a model and for early stopping."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass
class BestEvaluation:
    """Tracks the best evaluation; saved in checkpoints.

    Attributes:
      metric: the metric to compare; higher is better unless `lower_is_better`.
      patience: number of evaluations without improvement after which training should stop (0 disables this).
      once_in_percent: whether states without a unit, which earlier versions saved, have the metric in percent.
      lower_is_better: whether the best evaluation is that with the lowest value, as of a loss.
      step: the step of the best evaluation; None before the first one with a finite metric.
      value: its metric.
      evaluations_since: number of evaluations after the best one.
    """

    metric: str
    patience: int = 0
    once_in_percent: bool = False
    lower_is_better: bool = False
    step: int | None = None
    value: float = -math.inf
    evaluations_since: int = 0

    def record(self, step: int, figures: dict[str, float]) -> bool:
        """Records an evaluation and returns whether it is the best so far. NaN never is."""
        value, sign = figures[self.metric], -1 if self.lower_is_better else 1
        if math.isfinite(value) and (self.step is None or sign * value > sign * self.value):
            self.step, self.value, self.evaluations_since = step, value, 0
            return True
        self.evaluations_since += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether as many evaluations as `patience` brought no improvement."""
        return 0 < self.patience <= self.evaluations_since

    def get_state(self) -> dict[str, Any]:
        """Returns the state as plain JSON. Its keys are a format on disk."""
        value = self.value if math.isfinite(self.value) else None
        return {"step": self.step, "value": value, "waited": self.evaluations_since, "unit": "fraction"}

    def set_state(self, state: dict[str, Any]) -> bool:
        """Restores what `get_state` returned, and returns whether an earlier version saved it in percent."""
        self.step, self.evaluations_since = state["step"], state["waited"]
        percent = self.once_in_percent and "unit" not in state
        self.value = -math.inf if state["value"] is None else state["value"] / (100 if percent else 1)
        return percent and state["value"] is not None
