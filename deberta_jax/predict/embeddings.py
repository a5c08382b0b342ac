"""Vectors of texts: the encoder's output, pooled over the tokens."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ..config import DebertaConfig
from ..models import Deberta
from .checks import check_one_of
from .loaded_model import LoadedModel
from .pipeline import Arrays, Pipeline, RowOutputs, Rows
from .windows import Windows

Pooling = Literal["mean", "cls", "max"]


@dataclasses.dataclass(frozen=True)
class Embedding:
    """The vector of a text.

    Attributes:
      vector: As many numbers as the model's hidden size.
      windows: Number of windows that the text was read in. Above 1, the vector combines theirs.
    """

    vector: list[float]
    windows: int


@dataclasses.dataclass(frozen=True)
class EmbedTexts(Pipeline[str, Embedding]):
    """Turns a text into a vector.

    Attributes:
      pooling: "mean" or "max" over the tokens of the text, special tokens included, as sentence-transformers does; or
        "cls", the first token.
      normalize: Divide the vector by its length, so that a product of two vectors is the cosine of their angle.
      windows: What happens to long texts.

    Raises:
      UserError: The pooling is unknown.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    windows: Windows = Windows()

    def __post_init__(self) -> None:
        check_one_of("pooling", self.pooling, get_args(Pooling))

    def model(self, config: DebertaConfig, **attributes: Any) -> Deberta:
        return Deberta(config, **attributes)

    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        hidden = out.last_hidden_state.astype(jnp.float32)
        real = batch["attention_mask"][..., None]
        if self.pooling == "cls":
            vectors = hidden[:, 0]
        elif self.pooling == "max":
            vectors = jnp.where(real != 0, hidden, -jnp.inf).max(axis=1)
        else:  # a row of padding alone has no tokens
            vectors = (hidden * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)
        return {"vectors": vectors}

    def encode(self, model: LoadedModel, item: str) -> Rows[None]:
        return Rows(self.windows.rows(model, item), None)

    def decode(self, model: LoadedModel, item: str, rows: Rows[None], outputs: Sequence[RowOutputs]) -> Embedding:
        vector = self.windows.combined(np.stack([output["vectors"] for output in outputs]))
        if self.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)  # the least length is PyTorch's
        return Embedding(vector.tolist(), len(outputs))

    def traced_settings(self) -> Hashable:
        return EmbedTexts, self.pooling
