"""Several texts at once: what a call of `Tokenizer` accepts as a batch, and padding to arrays."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from ..errors import UserError

Padding = bool | Literal["longest", "max_length"]

_ACCEPTED = "give a string, a list of strings, or a list of pairs of strings"


@dataclasses.dataclass(frozen=True)
class PaddedBatch:
    """Texts or pairs of the same length, as the models take them.

    Attributes:
      input_ids: The ids, with [PAD] after the end of shorter ones.
      attention_mask: 1 for ids of the text and its special tokens, 0 for padding.
      token_type_ids: 1 from the first id of text B to the last [SEP], otherwise 0.
    """

    input_ids: Int32[np.ndarray, "B S"]
    attention_mask: Int32[np.ndarray, "B S"]
    token_type_ids: Int32[np.ndarray, "B S"]


def texts_and_pairs(texts: Sequence[Any], pairs: Any) -> list[tuple[str, str | None]]:
    """Returns each text of a batch with its pair or None.

    Args:
      texts: A list or another sequence of strings, or of pairs of strings.
      pairs: As many strings, or None.

    Raises:
      UserError: Something is not a string, or the two do not have the same number.
    """
    items = as_list(texts, "texts")
    joined: list[tuple[Any, Any]]
    if pairs is None:
        joined = [
            _checked_pair(item, i) if isinstance(item, tuple | list) else (item, None) for i, item in enumerate(items)
        ]
    else:
        seconds = as_list(pairs, "pairs")
        if len(items) != len(seconds):
            raise UserError(f"there are {len(items)} texts and {len(seconds)} pairs; give one pair for each text")
        joined = list(zip(items, seconds, strict=True))
    for i, (text, pair) in enumerate(joined):
        check_text(text, f"text {i}")
        if pair is not None or pairs is not None:
            check_text(pair, f"the pair of text {i}")
    return joined


def as_list(values: Any, name: str) -> list[Any]:
    """Returns the items of a list, tuple, array or other sequence of texts, or raises UserError."""
    if isinstance(values, str | bytes | bytearray | dict | set) or not hasattr(values, "__iter__"):
        raise UserError(f"{name} is a {type(values).__name__}; {_ACCEPTED}")
    return [str(value) if isinstance(value, np.str_) else value for value in values]


def check_text(text: Any, name: str) -> str:
    """Returns a text, or raises UserError if it is not a string of valid Unicode."""
    if not isinstance(text, str):
        raise UserError(f"{name} is a {type(text).__name__}, {text!r:.60}; {_ACCEPTED}")
    try:
        text.encode()  # at once for ASCII
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} has half of a surrogate pair, {text[error.start]!r}, at character {error.start}, which is not "
            "valid Unicode; remove or replace it"
        ) from None
    return text


def pad(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, padding: Padding, max_length: int | None, pad_id: int
) -> PaddedBatch:
    """Returns arrays of ids and token types, padded at the end.

    Args:
      rows: Ids and token types of each text.
      padding: True or "longest" pads to the longest row, "max_length" to `max_length`.
      max_length: Length of the rows for "max_length".
      pad_id: The id of [PAD].

    Raises:
      UserError: `padding` is something else, or `max_length` is missing.
    """
    if padding not in (True, "longest", "max_length"):
        raise UserError(f'padding is {padding!r}; it must be False, True, "longest" or "max_length"')
    if padding == "max_length" and max_length is None:
        raise UserError('padding is "max_length"; give max_length too')
    longest = max((len(ids) for ids, _ in rows), default=0)
    length = max_length if padding == "max_length" and max_length is not None else longest
    shape = len(rows), length
    input_ids, mask, types = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, (ids, kinds) in enumerate(rows):
        input_ids[i, : len(ids)], mask[i, : len(ids)], types[i, : len(ids)] = ids, 1, kinds
    return PaddedBatch(input_ids, mask, types)


def _checked_pair(item: Sequence[Any], i: int) -> tuple[Any, Any]:
    if len(item) != 2:
        raise UserError(f"text {i} is a {type(item).__name__} of {len(item)}; {_ACCEPTED}")
    check_text(item[1], f"the second of pair {i}")
    return item[0], item[1]
