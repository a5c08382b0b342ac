"""The command `deberta-jax fill-mask MODEL TEXT`."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from rich.table import Table
from rich.text import Text

from deberta_jax.console import PlainConsole, plain_text
from deberta_jax.embedded import masked_lm_of
from deberta_jax.predict import Predictor
from deberta_jax.predict.fill_mask import TokenCandidate, fill_mask, has_untrained_mlm_head, replace_mask
from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.terminal import shorten

from .model_and_text import ModelAndText


@dataclasses.dataclass(frozen=True)
class FillMaskConfig(ModelAndText):
    """Predict the token behind each [MASK] of a text with a masked language model."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "deberta-v3-tiny 'She went to the door and [MASK] it.'",
        "microsoft/deberta-v3-small 'Paris is the [MASK] of France.' --filename pytorch_model.generator.bin",
    )

    top_k: int = 5
    """Number of tokens shown for each mask"""


def main(config: FillMaskConfig) -> None:
    """Runs `deberta-jax fill-mask`: prints a table for each mask and, if there is only one, the completed text.

    Raises:
      Exception: As `Predictor.load` and `fill_mask`.
    """
    source = config.model if config.filename else masked_lm_of(config.model)
    model = Predictor.load(source, filename=config.filename)
    warn_of_untrained_head(model)
    print_masks(model, config.text, fill_mask(model, config.text, top_k=config.top_k))


def warn_of_untrained_head(model: LoadedModel) -> None:
    """Prints a warning if the masked LM head was not trained with the encoder."""
    if has_untrained_mlm_head(model):
        PlainConsole(stderr=True).print(
            Text("warning:", "yellow"),
            f"{shorten(model.source)} is the discriminator of replaced token detection: its masked LM head was not "
            "trained with this encoder, so its predictions mean little. Use the generator (--filename "
            "pytorch_model.generator.bin, or the run's generator/)",
            soft_wrap=True,
        )


def print_masks(model: LoadedModel, text: str, masks: Sequence[Sequence[TokenCandidate]]) -> None:
    """Prints a table for each mask of a text and, if there is only one, the completed text."""
    console = PlainConsole()
    for number, candidates in enumerate(masks, start=1):
        table = Table("token", "probability", title=f"mask {number} of {len(masks)}" if len(masks) > 1 else None)
        for candidate in candidates:
            table.add_row(plain_text(candidate.piece), f"{candidate.probability:.4f}")
        console.print(table)
    if len(masks) == 1:
        console.print(replace_mask(model, text, masks[0][0]), soft_wrap=True)
