"""Windows over texts that are longer than a row: which tokens each has, and how their results are combined."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from ..errors import UserError
from ..tokenizers.batch import check_text
from .checks import check_at_least_one, check_one_of
from .loaded_model import LoadedModel
from .pipeline import Row, TextPair

Combination = Literal["mean", "max", "truncate", "error"]
_DEFAULT_LENGTH = 512


@dataclasses.dataclass(frozen=True)
class Windows:
    """What happens to a text, or a pair of texts, that is longer than a row.

    Attributes:
      max_length: Largest number of tokens of a row, with the special tokens (default: 512, or the number of absolute
        positions of a model that reads them if that is less).
      combine: "mean" and "max" read the whole text in windows and combine their results; "truncate" reads what fits
        into one row; "error" refuses the text.
      stride: Number of tokens between the starts of two windows (default: half of a window's tokens; at most all of
        them). The last window ends with the text, so it may start earlier.

    Raises:
      UserError: A value is out of range.
    """

    max_length: int | None = None
    combine: Combination = "mean"
    stride: int | None = None

    def __post_init__(self) -> None:
        check_one_of("windows", self.combine, get_args(Combination))
        check_at_least_one(max_length=self.max_length, stride=self.stride)

    def rows(self, model: LoadedModel, item: str | TextPair) -> list[Row]:
        """Returns the rows of a text or a pair. Of a long pair, the first text is in every window.

        Raises:
          UserError: The text is not text; it is too long and `combine` is "error"; or `max_length` is too small, or
            larger than the number of positions of the model.
        """
        item = TextPair.of(item)
        tokenizer, max_length = model.tokenizer, self.length(model)
        first = tokenizer.encode(item.text)
        second = None if item.pair is None else tokenizer.encode(check_text(item.pair, "the pair"))
        row = Row(*tokenizer.with_special_tokens(first, second))
        if len(row.input_ids) <= max_length:
            return [row]
        if self.combine == "truncate":
            encoding = tokenizer(item.text, item.pair, max_length=max_length)
            return [Row(encoding.input_ids, encoding.token_type_ids)]
        if second is None:
            return [Row(*tokenizer.with_special_tokens(part)) for part in self.split(model, first, None)]
        return [Row(*tokenizer.with_special_tokens(first, part)) for part in self.split(model, second, len(first))]

    def split(self, model: LoadedModel, tokens: Sequence[int], kept: int | None) -> list[Sequence[int]]:
        """Returns the parts of a text that are read one by one: all of it if it fits into a row.

        Args:
          model: The model.
          tokens: The text, without special tokens.
          kept: Number of tokens of the other text, which every row has (default: the text has no pair).

        Raises:
          UserError: The text is too long and `combine` is "error"; or `max_length` leaves no room for it.
        """
        max_length = self.length(model)
        special = 2 if kept is None else 2 + model.tokenizer.pair_separators
        room = max_length - special - (kept or 0)
        if len(tokens) <= room:
            return [tokens]
        if self.combine == "error":
            count = len(tokens) + max_length - room
            raise UserError(
                f"the text has {count} tokens, more than max_length {max_length}; shorten it, or set windows to mean, "
                "max or truncate"
            )
        if room < 1:
            other = f" and {kept} tokens of the other text, which every window has" if kept else ""
            raise UserError(
                f"max_length is {max_length}; it must be at least {special + (kept or 0) + 1}, for {special} special "
                f"tokens{other}, and one more"
            )
        if self.combine == "truncate":
            return [tokens[:room]]
        return [tokens[start : start + room] for start in window_starts(len(tokens), room, self.stride)]

    def length(self, model: LoadedModel, *, default: int = _DEFAULT_LENGTH) -> int:
        """Returns the largest number of tokens of a row.

        Args:
          model: The model.
          default: The number without `max_length`, if the model has absolute positions for so many.

        Raises:
          UserError: `max_length` is larger than the number of absolute positions of the model.
        """
        limit = model.max_tokens()
        if self.max_length is None:
            return min(default, limit or default)
        if limit is not None and self.max_length > limit:
            raise UserError(
                f"max_length is {self.max_length}, but {model.source} has positions for {limit} tokens; give {limit} "
                "or less"
            )
        return self.max_length

    def combined(self, values: Float[np.ndarray, "windows *features"]) -> Float[np.ndarray, "*features"]:
        """Returns the mean or the maximum over the windows."""
        return values.max(axis=0) if self.combine == "max" else values.mean(axis=0)


def window_step(room: int, stride: int | None) -> int:
    """Returns the number of tokens between the starts of two windows.

    Args:
      room: Number of tokens of a window.
      stride: The number that the user set; at most `room` is used (default: half of `room`).
    """
    return min(stride or max(1, room // 2), room)


def window_starts(tokens: int, room: int, stride: int | None) -> list[int]:
    """Returns where the windows of a text start; together they have every token.

    Args:
      tokens: Number of tokens of the text.
      room: Number of tokens of a window.
      stride: As for `window_step`.
    """
    step = window_step(room, stride)
    last = max(0, tokens - room)
    return [*range(0, last, step), last]
