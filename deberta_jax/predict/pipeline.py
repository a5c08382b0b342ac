"""What a use of a model consists of: items become rows of token ids, and the model's outputs become results."""

import abc
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Shaped

from ..config import DebertaConfig
from .loaded_model import LoadedModel

Item = TypeVar("Item")
Result = TypeVar("Result")
Context = TypeVar("Context")

Arrays = Mapping[str, Shaped[Array, "B ..."]]
RowOutputs = Mapping[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class TextPair:
    """A text, or two texts that are read together, such as a query and a document.

    Attributes:
      text: The first text.
      pair: The second text, if there is one.
    """

    text: str
    pair: str | None = None

    @classmethod
    def of(cls, item: "str | TextPair") -> "TextPair":
        """Returns a plain string as an item without a pair."""
        return item if isinstance(item, TextPair) else cls(item)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the model's input: a text, a pair, a window of a long text, one choice.

    Attributes:
      input_ids: The ids, with the special tokens and without padding.
      token_type_ids: As many types.
      masked_positions: Positions of the row for which a masked LM predicts tokens.
    """

    input_ids: Sequence[int]
    token_type_ids: Sequence[int]
    masked_positions: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Rows(Generic[Context]):
    """The rows of one item, in order, and what `Pipeline.decode` needs beside their outputs."""

    rows: Sequence[Row]
    context: Context


class Pipeline(abc.ABC, Generic[Item, Result]):
    """One use of a model: from an item (a text, a pair, a question with its context) to a result.

    A pipeline is a frozen dataclass of its settings. `Predictor.run` applies it to any number of items.

    Attributes:
      heads: The parts of the parameters that it needs beside the encoder, such as ("pooler", "classifier").
    """

    heads: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def model(self, config: DebertaConfig, **attributes: Any) -> nn.Module:
        """Returns the model, made with the attributes that every model has, such as `dtype`."""

    @abc.abstractmethod
    def outputs(self, out: Any, batch: Arrays) -> dict[str, jax.Array]:
        """Returns arrays [B, ...] of what the model returned. Traced by JAX.

        Float arrays must be finite where the input is not padding; anything else is reported as a broken model.

        Args:
          out: The output of the model.
          batch: `input_ids`, `attention_mask` and `token_type_ids` [B, S], and `masked_positions` [B, M] if rows have
            any.
        """

    @abc.abstractmethod
    def encode(self, model: LoadedModel, item: Item) -> Rows[Any]:
        """Returns the rows of an item.

        Raises:
          UserError: The item cannot be used.
        """

    @abc.abstractmethod
    def decode(self, model: LoadedModel, item: Item, rows: Rows[Any], outputs: Sequence[RowOutputs]) -> Result:
        """Returns the result of an item.

        Args:
          model: The model.
          item: The item.
          rows: What `encode` returned for it.
          outputs: For each row the arrays of `outputs` without the axis B. An axis S has the length of the row.
        """

    def check(self, model: LoadedModel) -> None:
        """Raises UserError if the model cannot be used in this way, whatever the item. It has the heads."""

    def traced_settings(self) -> Hashable:
        """Returns what `model` and `outputs` depend on: pipelines that agree in it share their compiled programs.

        A pipeline with settings that only `encode` and `decode` read returns its class with the other settings, so that
        nothing is compiled again for other labels or another number of results.
        """
        return self
