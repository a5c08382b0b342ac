"""The command `deberta-jax fill-mask MODEL TEXT`."""

import dataclasses

from rich.table import Table
from rich.text import Text

from deberta_jax.console import PlainConsole, plain_text
from deberta_jax.predict import Predictor
from deberta_jax.predict.fill_mask import fill_mask, has_untrained_mlm_head, replace_mask
from deberta_jax.terminal import shorten

from .model_and_text import ModelAndText


@dataclasses.dataclass(frozen=True)
class FillMaskConfig(ModelAndText):
    """Predict the token behind each [MASK] of a text with a masked language model."""

    top_k: int = 5
    """Number of tokens shown for each mask"""


def main(config: FillMaskConfig) -> None:
    """Runs `deberta-jax fill-mask`: prints a table for each mask and, if there is only one, the completed text.

    Raises:
      Exception: As `Predictor.load` and `fill_mask`.
    """
    console = PlainConsole()
    model = Predictor.load(config.model, filename=config.filename)
    if has_untrained_mlm_head(model):
        PlainConsole(stderr=True).print(
            Text("warning:", "yellow"),
            f"{shorten(config.model)} is the discriminator of replaced token detection: its masked LM head was not "
            "trained with this encoder, so its predictions mean little. Use the generator (--filename "
            "pytorch_model.generator.bin, or the run's generator/)",
            soft_wrap=True,
        )
    masks = fill_mask(model, config.text, top_k=config.top_k)
    for number, candidates in enumerate(masks, start=1):
        table = Table("token", "probability", title=f"mask {number} of {len(masks)}" if len(masks) > 1 else None)
        for candidate in candidates:
            table.add_row(plain_text(candidate.piece), f"{candidate.probability:.4f}")
        console.print(table)
    if len(masks) == 1:
        console.print(replace_mask(model, config.text, masks[0][0]), soft_wrap=True)
