"""Which tokens of a text look replaced: the command `deberta-jax detect MODEL TEXT`."""

import dataclasses
from typing import Any

import jax
import numpy as np
import tyro

from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForReplacedTokenDetection

from .open_model import OpenedModel, open_model


@dataclasses.dataclass(frozen=True)
class Judgment:
    """One token of a text.

    Attributes:
      piece: as the tokenizer has it, such as "▁Paris".
      start, end: where it stands in the text, in characters.
      probability: that it was replaced, 0 to 1.
    """

    piece: str
    start: int
    end: int
    probability: float


def detect(model: OpenedModel, text: str) -> list[Judgment]:
    """The probability of being replaced, for every token of a text but [CLS] and [SEP].

    Raises:
      ConversionError: the model has no replaced token head.
      ValueError: the text is empty.
    """
    encoding = model.tokenizer(text, return_offsets=True)
    ids = np.array([encoding.input_ids])
    if ids.size <= 2:
        raise UserError(f"the text {text!r} has no tokens; give one with words in it")
    network = DebertaForReplacedTokenDetection(model.config)
    out: Any = jax.jit(network.apply)({"params": model.head("rtd_head")}, ids)
    probabilities = np.asarray(jax.nn.sigmoid(out.logits[0]))
    pieces = model.tokenizer.pieces(ids[0])
    return [
        Judgment(piece, *place, float(share))
        for piece, place, share in zip(pieces, encoding.offsets or (), probabilities, strict=True)
        if place is not None  # [CLS] and [SEP]
    ]


# ------------------------------------------------------------------------------------------------------- command


@dataclasses.dataclass(frozen=True)
class DetectConfig:
    """Show which tokens of a text look replaced."""

    model: tyro.conf.Positional[str]
    """Folder of a discriminator (ours or PyTorch's), or a hub name such as microsoft/deberta-v3-base."""
    text: tyro.conf.Positional[str]
    """The text."""
    filename: str | None = None
    """Which PyTorch weights, where the usual names do not say."""


def main(config: DetectConfig) -> None:
    """Runs `deberta-jax detect`. Raises what `open_model` and `detect` do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    judgments = detect(open_model(config.model, filename=config.filename), config.text)
    table = Table("token", "replaced?")
    for judgment in judgments:
        style = _color(judgment.probability)
        table.add_row(Text(judgment.piece, style), Text(f"{judgment.probability:.4f}", style))
    console.print(table)
    line = Text(config.text)
    for judgment in judgments:
        line.stylize(_color(judgment.probability), judgment.start, judgment.end)
    console.print(line, soft_wrap=True)


def _color(probability: float) -> str:
    """From the terminal's own color over yellow to red, in steps that can be told apart."""
    steps = ((0.5, "bold red"), (0.2, "dark_orange"), (0.05, "yellow"))
    return next((style for least, style in steps if probability >= least), "")
