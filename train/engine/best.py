"""The best evaluation so far, and when to stop waiting for a better one."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass
class Best:
    """Of all evaluations by `metric` (higher is better); its place is saved with every checkpoint.

    `patience`: evaluations without a better one after which training is `done`; 0: never.
    """

    metric: str
    patience: int = 0
    step: int | None = None
    value: float = -math.inf
    waited: int = 0

    def record(self, step: int, figures: dict[str, float]) -> bool:
        """Whether this evaluation is the best so far. A figure that is not a number never is."""
        if figures[self.metric] > self.value:
            self.step, self.value, self.waited = step, figures[self.metric], 0
            return True
        self.waited += 1
        return False

    @property
    def done(self) -> bool:
        return 0 < self.patience <= self.waited

    def get_state(self) -> dict[str, Any]:
        """Plain JSON."""
        value = self.value if math.isfinite(self.value) else None
        return {"step": self.step, "value": value, "waited": self.waited}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step, self.waited = state["step"], state["waited"]
        self.value = -math.inf if state["value"] is None else state["value"]
