"""A text as tokens with the characters that each comes from, and windows over more tokens than a row has."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32

from ..errors import UserError
from ..tokenizers.batch import check_text
from ..tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedText:
    """A tokenized text, without special tokens.

    Attributes:
      ids: token ids.
      offsets: start and end of the characters that each token comes from (see `Encoding.offsets`).
    """

    ids: Int32[np.ndarray, "tokens"]
    offsets: Int32[np.ndarray, "tokens 2"]

    def tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """Returns the first and the last of the tokens that cover the characters from `start` to `end`, if any do."""
        inside = np.flatnonzero((self.offsets[:, 0] < end) & (self.offsets[:, 1] > start))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None


def tokenize(tokenizer: Tokenizer, text: str) -> TokenizedText:
    """Returns a text as tokens."""
    encoding = tokenizer(text, return_offsets=True)
    offsets = [offset for offset in encoding.offsets or () if offset is not None]
    return TokenizedText(np.array(encoding.input_ids[1:-1], np.int32), np.array(offsets, np.int32).reshape(-1, 2))


def spaced_words(words: Sequence[str]) -> list[str]:
    """Returns the words of a sentence with the space before each but the first, to be tokenized one by one."""
    return [f"{' ' * (index > 0)}{word}" for index, word in enumerate(words)]


def cut_windows(tokens: int, *, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields the first token and the size of each window over a text. The last window ends with the text.

    A text without tokens has one window, of size 0.

    Args:
      tokens: number of tokens of the text.
      room: largest size of a window.
      stride: distance between the starts of two windows, at most `room`.
    """
    first = 0
    while first + room < tokens:
        yield first, room
        first += stride
    yield first, tokens - first


def strip_span(whole: str, start: int, end: int) -> tuple[str, int]:
    """Returns the text of characters without white space around it, and its start."""
    text = whole[start:end]
    return text.strip(), start + len(text) - len(text.lstrip())


def check_nonblank(text: object, name: str) -> str:
    """Returns a text, or raises UserError if it is not a string of valid Unicode or has only white space."""
    checked = check_text(text, name)
    if not checked.strip():
        raise UserError(f"{name} is {checked!r:.20}, which is blank; give a text")
    return checked
