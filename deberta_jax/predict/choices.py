"""The best of several choices for a prompt."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from ..config import DebertaConfig
from ..errors import UserError
from ..models import DebertaForSequenceClassification
from ..tokenizers.batch import check_text
from .choice_rows import choice_room, choice_row, join_question_and_choice
from .classification import softmax
from .loaded_model import LoadedModel
from .pipeline import Arrays, Pipeline, Row, RowOutputs, Rows
from .tokenized_text import check_nonblank
from .windows import Windows


@dataclasses.dataclass(frozen=True)
class PromptAndChoices:
    """A multiple-choice question.

    Attributes:
      prompt: The text that all choices follow or are about.
      choices: The choices, at least two.
      question: A question between the prompt and each choice, if there is one. A choice fills a blank in it ("_").
    """

    prompt: str
    choices: Sequence[str]
    question: str | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best choice.

    Attributes:
      index: Its index.
      text: Its text.
      probability: Its probability.
      probabilities: The probability of each choice, in their order.
      notes: What was left out of the model's input, if anything.
    """

    index: int
    text: str
    probability: float
    probabilities: tuple[float, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ChooseAnswers(Pipeline[PromptAndChoices, Choice]):
    """Chooses among choices with a softmax over their scores, as `DebertaForMultipleChoice` and `finetune` do.

    Each choice is a row `[CLS] prompt [SEP] question choice [SEP]`. A prompt that is too long is cut at its end, and so
    is a choice that is too long by itself; `Choice.notes` says how much is missing.

    Attributes:
      max_length: Largest number of tokens of a row (default: 512, or the number of absolute positions of a model that
        reads them).

    Raises:
      UserError: A value is out of range.
    """

    heads: ClassVar[tuple[str, ...]] = ("pooler", "classifier")
    max_length: int | None = None

    def __post_init__(self) -> None:
        Windows(self.max_length)  # checks it

    def traced_settings(self) -> Hashable:
        return ChooseAnswers

    def check(self, model: LoadedModel) -> None:
        outputs = np.shape(model.params["classifier"]["bias"])[-1]
        if outputs != 1:
            raise UserError(
                f"{model.source} has {outputs} classes, not one score for each choice; classify the texts instead, or "
                "train a model of choices with `deberta-jax finetune --kind choice`"
            )

    def model(self, config: DebertaConfig, **attributes: Any) -> DebertaForSequenceClassification:
        # A multiple-choice model scores its rows one by one; its configuration may give any number of labels.
        return DebertaForSequenceClassification(config.replace(num_labels=1), **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        return {"logits": out.logits}

    def encode(self, model: LoadedModel, item: PromptAndChoices) -> Rows[tuple[str, ...]]:
        _check(item)
        max_length = Windows(self.max_length).length(model)
        room = choice_room(model.tokenizer, max_length)
        prompt = model.tokenizer.encode(item.prompt)
        pairs = [model.tokenizer.encode(join_question_and_choice(item.question, choice)) for choice in item.choices]
        rows = [Row(*choice_row(model.tokenizer, prompt, pair, room)) for pair in pairs]
        longest = max(map(len, pairs))
        missing = min(len(prompt), max(0, len(prompt) + longest - room))
        cut = [("the prompt", len(prompt) - missing, len(prompt)), ("the longest choice", min(longest, room), longest)]
        notes = [
            f"{name} was cut to {kept} of its {tokens} tokens to fit max_length {max_length}"
            for name, kept, tokens in cut
            if kept < tokens
        ]
        return Rows(rows, tuple(notes))

    def decode(
        self, model: LoadedModel, item: PromptAndChoices, rows: Rows[tuple[str, ...]], outputs: Sequence[RowOutputs]
    ) -> Choice:
        probabilities = tuple(softmax(np.concatenate([output["logits"] for output in outputs])).tolist())
        best = int(np.argmax(probabilities))
        return Choice(best, item.choices[best], probabilities[best], probabilities, rows.context)


def _check(item: PromptAndChoices) -> None:
    """Raises UserError if an item cannot be used."""
    if item.question is not None:
        check_nonblank(item.question, "the question")
        check_text(item.prompt, "the prompt")
    else:
        check_nonblank(item.prompt, "the prompt")
    if not isinstance(item.choices, list | tuple):
        raise UserError(f"the choices are a {type(item.choices).__name__}; give a list of texts")
    if len(item.choices) < 2:
        raise UserError(f"there {'is 1 choice' if item.choices else 'are no choices'}; give at least two")
    for index, choice in enumerate(item.choices):
        check_nonblank(choice, f"choice {index}")
