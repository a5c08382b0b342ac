"""What a masked LM puts in the place of [MASK]: the command `deberta-jax fill-mask MODEL TEXT`."""

import dataclasses
from typing import Any

import jax
import numpy as np
import tyro

from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForMaskedLM

from .open_model import OpenedModel, open_model


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One token for one mask.

    Attributes:
      id: its id.
      piece: as the tokenizer has it, such as "▁Paris".
      probability: softmax over the tokenizer's ids; the spare rows of the model's table do not take part.
    """

    id: int
    piece: str
    probability: float


def fill_mask(model: OpenedModel, text: str, *, top_k: int = 5) -> list[list[Candidate]]:
    """The likeliest tokens for each [MASK] of a text, best first; several masks are filled independently.

    Raises:
      ConversionError: the model has no masked LM head.
      ValueError: no [MASK] in the text, or top_k out of range.
    """
    tokenizer = model.tokenizer
    if not 1 <= top_k <= tokenizer.vocab_size:
        raise UserError(f"top_k is {top_k}; it must be 1 to {tokenizer.vocab_size}, the size of the vocabulary")
    ids = np.array([tokenizer(text, parse_mask=True).input_ids])
    masked = np.flatnonzero(ids[0] == tokenizer.mask_id)
    if not masked.size:
        raise UserError(f"no [MASK] in {text!r}; write it where a token is to be filled in, as in 'Paris is [MASK].'")
    network = DebertaForMaskedLM(model.config)
    out: Any = jax.jit(network.apply)({"params": model.head("mlm_head")}, ids, masked_positions=masked[None])
    probabilities, best = jax.lax.top_k(jax.nn.softmax(out.logits[0, :, : tokenizer.vocab_size]), top_k)
    return [
        [
            Candidate(int(i), piece, float(probability))
            for i, piece, probability in zip(row, tokenizer.pieces(row), shares, strict=True)
        ]
        for row, shares in zip(np.asarray(best), np.asarray(probabilities), strict=True)
    ]


def is_leftover(model: OpenedModel) -> bool:
    """Whether the masked LM head is what RTD pre-training left over: it was never trained with this encoder."""
    return "mlm_head" in model.params and "rtd_head" in model.params


# ------------------------------------------------------------------------------------------------------- command


@dataclasses.dataclass(frozen=True)
class FillMaskConfig:
    """Fill in the [MASK]s of a text."""

    model: tyro.conf.Positional[str]
    """Folder of a model with a masked LM head (ours or PyTorch's), or a hub name."""
    text: tyro.conf.Positional[str]
    """Text with one [MASK] or several."""
    top_k: int = 5
    """Tokens shown for each mask."""
    filename: str | None = None
    """Which PyTorch weights, e.g. pytorch_model.generator.bin, the masked LM of a v3 model."""


def main(config: FillMaskConfig) -> None:
    """Runs `deberta-jax fill-mask`. Raises what `open_model` and `fill_mask` do."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    model = open_model(config.model, filename=config.filename)
    if is_leftover(model):
        Console(stderr=True).print(
            f"[yellow]warning:[/yellow] {escape(config.model)} is the discriminator of replaced token detection: its "
            "masked LM head was not trained with this encoder, and what it says means little. Use the generator "
            "(--filename pytorch_model.generator.bin, or the run's generator/)",
            soft_wrap=True,
        )
    masks = fill_mask(model, config.text, top_k=config.top_k)
    for number, candidates in enumerate(masks, start=1):
        table = Table("token", "probability", title=f"mask {number} of {len(masks)}" if len(masks) > 1 else None)
        for candidate in candidates:
            table.add_row(escape(candidate.piece), f"{candidate.probability:.4f}")
        console.print(table)
    if len(masks) == 1:
        console.print(escape(filled(model, config.text, masks[0][0])), soft_wrap=True)


def filled(model: OpenedModel, text: str, candidate: Candidate) -> str:
    """The text with its one mask filled in, as the tokenizer spells it."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, parse_mask=True)
    return tokenizer.decode([candidate.id if i == tokenizer.mask_id else i for i in ids])
