"""Windows over texts that are longer than a row: which tokens each has, and how their results are combined."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from ..errors import UserError
from .loaded_model import LoadedModel
from .pipeline import Row, TextPair

Combination = Literal["mean", "max", "truncate", "error"]
_DEFAULT_LENGTH = 512


@dataclasses.dataclass(frozen=True)
class Windows:
    """What happens to a text, or a pair of texts, that is longer than a row.

    Attributes:
      max_length: Largest number of tokens of a row, with the special tokens (default: 512, or the number of absolute
        positions of a model that reads them).
      combine: "mean" and "max" read the whole text in windows and combine their results; "truncate" reads the first
        window only, and of a pair as much as `Tokenizer` keeps; "error" refuses the text.
      stride: Number of tokens between the starts of two windows (default: half of the tokens of a window). The last
        window ends with the text, so it may start earlier. Of a pair the first text is in every window.

    Raises:
      UserError: A value is out of range.
    """

    max_length: int | None = None
    combine: Combination = "mean"
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combination):
            raise UserError(f"windows is {self.combine!r}; it must be one of {', '.join(get_args(Combination))}")
        for name in ("max_length", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")

    def rows(self, model: LoadedModel, item: str | TextPair) -> list[Row]:
        """Returns the rows of a text or a pair.

        Raises:
          UserError: The text is not text; it is too long and `combine` is "error"; or `max_length` is too small, or
            larger than the number of positions of the model.
        """
        item = TextPair.of(item)
        max_length = self._max_length(model)
        encoding = model.tokenizer(item.text, item.pair)
        count = len(encoding.input_ids)
        if count <= max_length:
            return [Row(encoding.input_ids, encoding.token_type_ids)]
        if self.combine == "error":
            raise UserError(
                f"the text has {count} tokens, more than max_length {max_length}; shorten it, or read it in windows "
                "(mean or max) or cut it (truncate)"
            )
        if self.combine == "truncate":
            encoding = model.tokenizer(item.text, item.pair, max_length=max_length)
            return [Row(encoding.input_ids, encoding.token_type_ids)]
        return self._windows(model, item, max_length)

    def _max_length(self, model: LoadedModel) -> int:
        limit = model.max_tokens()
        if self.max_length is None:
            return min(_DEFAULT_LENGTH, limit or _DEFAULT_LENGTH)
        if limit is not None and self.max_length > limit:
            raise UserError(
                f"max_length is {self.max_length}, but {model.source} has positions for {limit} tokens; give {limit} "
                "or less"
            )
        return self.max_length

    def _windows(self, model: LoadedModel, item: TextPair, max_length: int) -> list[Row]:
        first = model.tokenizer.encode(item.text)
        long = first if item.pair is None else model.tokenizer.encode(item.pair)
        kept = [] if item.pair is None else first
        special = 2 if item.pair is None else 2 + model.tokenizer.pair_separators
        room = max_length - special - len(kept)
        if room < 1:
            raise UserError(
                f"the first text has {len(kept)} tokens and there are {special} special tokens, which leaves no room "
                f"in max_length {max_length}; give a larger max_length{' or a shorter first text' * bool(kept)}"
            )
        rows = []
        for start in window_starts(len(long), room, self.stride):
            window = long[start : start + room]
            texts = (window,) if item.pair is None else (kept, window)
            rows.append(Row(*model.tokenizer.with_special_tokens(*texts)))
        return rows

    def combined(self, values: Float[np.ndarray, "windows classes"]) -> Float[np.ndarray, "classes"]:
        """Returns the mean or the maximum over the windows."""
        return values.max(axis=0) if self.combine == "max" else values.mean(axis=0)


def window_starts(tokens: int, room: int, stride: int | None) -> list[int]:
    """Returns where the windows of a text start; together they have every token.

    Args:
      tokens: Number of tokens of the text.
      room: Number of tokens of a window.
      stride: Number of tokens between two starts, at most `room` (default: half of `room`).
    """
    step = min(stride or max(1, room // 2), room)
    last = max(0, tokens - room)
    return [*range(0, last, step), last]
