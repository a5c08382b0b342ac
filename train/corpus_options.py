"""What the options --corpus and --curriculum say: folders with weights, and sequence lengths with steps."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names, shown_number

from .settings import LARGEST_INT, LONGEST_ROW, SHORTEST_ROW

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_SMALLEST, _LARGEST = Fraction(1, 10**9), Fraction(10**9)
_STAGE = re.compile(r"(\d{1,10})(?::([+-]?\d{1,15}))?", re.ASCII)


class WeightedName(NamedTuple):
    """The folder of a corpus, and its weight if it has one."""

    name: str
    weight: Fraction | None


def parse_weighted(text: str) -> WeightedName:
    r"""Returns the folder and the weight of NAME or NAME:WEIGHT.

    The weight is what follows the last colon, if that is a number. Other colons belong to the name, as in C:\rows and
    gs://bucket/rows. A folder whose own name ends with a colon and a number needs a weight.

    Raises:
      UserError: the name is empty, or the weight is not above 0 and finite.
    """
    name, colon, ending = text.rpartition(":")
    if not colon or not (_NUMBER.fullmatch(ending) or _NOT_FINITE.fullmatch(ending)):
        name, weight = text, None
    else:
        weight = Fraction(ending) if _NUMBER.fullmatch(ending) else None
        if weight is None or not _SMALLEST <= weight <= _LARGEST:
            raise UserError(f"corpus {text!r} has the weight {ending}; it must be above 0, from 1e-9 to 1e9")
    if not name:
        raise UserError(f"corpus {text!r} has no folder; give FOLDER or FOLDER:WEIGHT")
    return WeightedName(name, weight)


class Stage(NamedTuple):
    """A sequence length in tokens, and the number of steps with it."""

    sequence_length: int
    steps: int


def parse_stages(texts: Sequence[str], steps: int) -> tuple[Stage, ...]:
    """Returns the stages of a curriculum such as 128:900 512:100, where the last one may lack its steps.

    Args:
      texts: LENGTH:STEPS each.
      steps: steps of the run.

    Raises:
      UserError: a stage has another form, a length is out of range or given twice, or the steps do not add up.
    """
    stages: list[Stage] = []
    for number, text in enumerate(texts, 1):
        match = _STAGE.fullmatch(text)
        if match is None:
            raise UserError(f"curriculum has {text!r}; a stage is LENGTH:STEPS, such as 128:90000")
        length = int(match[1])
        if not SHORTEST_ROW <= length <= LONGEST_ROW:
            raise UserError(f"curriculum has the length {length}; it must be at least {SHORTEST_ROW}, usually 128")
        if length in (stage.sequence_length for stage in stages):
            raise UserError(f"curriculum has the length {length} twice; give every length once")
        done = sum(stage.steps for stage in stages)
        if match[2] is None and number < len(texts):
            raise UserError(f"curriculum has no steps for length {length}; only the last stage may leave them out")
        count = steps - done if match[2] is None else int(match[2])
        if match[2] is not None and not 1 <= count <= LARGEST_INT:
            raise UserError(f"curriculum has {count} steps for length {length}; it must be at least 1")
        stages.append(Stage(length, count))
    total = sum(stage.steps for stage in stages)
    if stages and (total != steps or stages[-1].steps < 1):
        listed = list_names([f"{stage.sequence_length}:{stage.steps}" for stage in stages[:-1]] + [texts[-1]])
        raise UserError(
            f"the curriculum {listed} does not fit into --steps {shown_number(steps)}; the steps of its stages must "
            "add up to it, or leave out those of the last stage, which takes the rest"
        )
    return tuple(stages)
