"""The command `deberta-jax detect MODEL TEXT`."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from rich.table import Table

from deberta_jax.console import PlainConsole, plain_text
from deberta_jax.predict import Predictor
from deberta_jax.predict.replaced_tokens import TokenScore, score_replaced_tokens
from deberta_jax.terminal import printable

from .model_and_text import ModelAndText

# Minimum probability of being replaced -> style of the token; less probable tokens keep the terminal's color.
_STYLES = ((0.5, "bold red"), (0.2, "dark_orange"), (0.05, "yellow"))


@dataclasses.dataclass(frozen=True)
class DetectConfig(ModelAndText):
    """Show which tokens of a text look replaced, with the discriminator of replaced token detection."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "deberta-v3-tiny 'He put his hand into his because and took out a letter.'",
        "microsoft/deberta-v3-small 'The capital of France is banana.'",
    )


def main(config: DetectConfig) -> None:
    """Runs `deberta-jax detect`: prints a table of the tokens, and the text with suspicious tokens in color.

    Raises:
      Exception: As `Predictor.load` and `score_replaced_tokens`.
    """
    model = Predictor.load(config.model, filename=config.filename)
    print_scores(config.text, score_replaced_tokens(model, config.text))


def print_scores(text: str, scores: Sequence[TokenScore]) -> None:
    """Prints a table of the tokens of a text, and the text with suspicious tokens in color."""
    console = PlainConsole()
    table, colored_text = Table("token", "replaced?"), plain_text(text, lines=True)
    for score in scores:
        style = _style(score.probability)
        table.add_row(plain_text(score.piece, style), plain_text(f"{score.probability:.4f}", style))
        # Control characters are longer on the screen than in the text.
        start, end = (len(printable(text[:offset], lines=True)) for offset in (score.start, score.end))
        colored_text.stylize(style, start, end)
    console.print(table)
    console.print(colored_text, soft_wrap=True)


def _style(probability: float) -> str:
    return next((style for threshold, style in _STYLES if probability >= threshold), "")
