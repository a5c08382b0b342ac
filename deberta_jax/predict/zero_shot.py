"""Classes that are only named: a model of natural language inference judges "This example is CLASS." for each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from ..terminal import quote_names
from .classification import THRESHOLD, Classification, TextLogits, classification, softmax
from .loaded_model import LoadedModel
from .pipeline import Row, RowOutputs, Rows
from .windows import Windows

DEFAULT_TEMPLATE = "This example is {}."


@dataclasses.dataclass(frozen=True)
class ClassifyZeroShot(TextLogits[str, Classification]):
    """Finds which of the given classes a text has. The text is the premise and each class makes a hypothesis.

    Attributes:
      labels: The classes.
      template: The hypothesis, with {} in place of the class.
      multi_label: Judge each class by itself, by the softmax of entailment and contradiction. Otherwise, with more than
        one class, the softmax goes over the entailment of all classes. As transformers' zero-shot-classification.
      windows: What happens to long texts; every window has the whole hypothesis.

    Raises:
      UserError: There are no labels or one twice, or the template has no {}.
    """

    labels: tuple[str, ...]
    template: str = DEFAULT_TEMPLATE
    multi_label: bool = False
    windows: Windows = Windows()

    def __post_init__(self) -> None:
        if not self.labels or not all(label.strip() for label in self.labels):
            raise UserError("zero-shot classification needs the names of the classes, none of them empty")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"the labels are {quote_names(self.labels)}; give each only once")
        if "{}" not in self.template:
            raise UserError(f"the template is {self.template!r}; it must have {{}} where the label belongs")

    def check(self, model: LoadedModel) -> None:
        _entailment(model)

    def encode(self, model: LoadedModel, item: str) -> Rows[None]:
        text = model.tokenizer.encode(item)
        hypotheses = [model.tokenizer.encode(self.template.replace("{}", label)) for label in self.labels]
        lengths = [len(hypothesis) for hypothesis in hypotheses]
        if self.windows.combine != "truncate":  # the windows are the same for every label
            lengths = [max(lengths)] * len(lengths)
        parts = zip(*[self.windows.split(model, text, length) for length in lengths], strict=True)
        join = model.tokenizer.with_special_tokens
        rows = [Row(*join(*pair)) for window in parts for pair in zip(window, hypotheses, strict=True)]
        return Rows(rows, None)

    def decode(self, model: LoadedModel, item: str, rows: Rows[None], outputs: Sequence[RowOutputs]) -> Classification:
        logits = np.stack([output["logits"] for output in outputs]).reshape(
            -1, len(self.labels), model.config.num_labels
        )
        entailment, contradiction = _entailment(model)
        by_itself = self.multi_label or len(self.labels) == 1
        if by_itself:
            probabilities = softmax(logits[..., [contradiction, entailment]])[..., 1]
        else:
            probabilities = softmax(logits[..., entailment])
        return classification(
            self.labels,
            self.windows.combined(probabilities),
            windows=len(logits),
            thresholds=dict.fromkeys(self.labels, THRESHOLD) if by_itself else None,
        )


def _entailment(model: LoadedModel) -> tuple[int, int]:
    """Returns the classes of entailment and of contradiction.

    If no class is called contradiction (or not_entailment), it is the first class, or the last if entailment is the
    first: transformers' rule.

    Raises:
      UserError: No class is called entailment, or there is no other class.
    """
    names = [name.lower() for name in model.label_names]
    entailment = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
    if entailment is None or len(names) < 2:
        raise UserError(
            f"zero-shot classification needs a model of natural language inference, with a class called entailment; "
            f"the classes of {model.source} are {quote_names(model.label_names)}"
        )
    opposite = ("contradict", "not_entail", "not entail", "non-entail", "non_entail")
    default = len(names) - 1 if entailment == 0 else 0
    return entailment, next((i for i, name in enumerate(names) if name.startswith(opposite)), default)
