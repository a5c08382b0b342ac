"""Reads the objects of a JSON file: one per line, several per line, spread over lines, or in a list."""

import json
import re
from collections.abc import Iterator
from typing import Any

from deberta_jax.errors import UserError

_BLANK = re.compile(r"[ \t\r\n]*")


def json_objects(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each object of a text with the number of the line on which it begins.

    The objects may follow each other with or without line ends, as in concatenated files, and may be in a list.

    Args:
      name: the file in errors.
      text: objects, or lists of objects.

    Raises:
      UserError: if the text is not JSON, ends too early, has other values, or has a key twice in one object.
    """
    reader = _Reader(name, text)
    while not reader.at_end():
        if not reader.skip("["):
            yield reader.object()
            continue
        if reader.skip("]"):
            continue
        yield reader.object()
        while reader.skip(","):
            yield reader.object()
        reader.require("]")


class _Reader:
    """A position in a JSON text."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._position, self._line, self._counted = 0, 1, 0
        self._decoder = json.JSONDecoder(object_pairs_hook=_without_twins)

    def at_end(self) -> bool:
        self._skip_blanks()
        return self._position == len(self._text)

    def skip(self, sign: str) -> bool:
        """Moves behind a sign if it comes next, and returns whether it does."""
        self._skip_blanks()
        found = self._text.startswith(sign, self._position)
        self._position += found
        return found

    def require(self, sign: str) -> None:
        if self.at_end():
            raise self._truncated("list")
        if not self.skip(sign):
            raise UserError(f"{self._name}, line {self._line}: not JSON (expecting ',' or {sign!r})")

    def object(self) -> tuple[int, dict[str, Any]]:
        """Returns the next value, which must be an object, and its line."""
        if self.at_end():
            raise self._truncated("list")
        try:
            value, self._position = self._decoder.raw_decode(self._text, self._position)
        except json.JSONDecodeError as error:
            # The text ends inside a string or where a value or a sign is missing.
            if error.msg.startswith("Unterminated string") or error.pos >= len(self._text):
                raise self._truncated("object") from None
            raise UserError(
                f"{self._name}, line {error.lineno}: not JSON ({error.msg} at character {error.colno}); "
                "write one object per line, or a list of objects"
            ) from None
        except RecursionError:
            raise UserError(f"{self._name}, line {self._line}: not JSON (too many nested lists or objects)") from None
        except UserError as error:  # a key that occurs twice
            raise UserError(f"{self._name}, line {self._line}: {error}") from None
        except ValueError as error:  # a number that is too long
            raise UserError(f"{self._name}, line {self._line}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise UserError(f"{self._name}, line {self._line}: not a JSON object; write one object per line")
        return self._line, value

    def _skip_blanks(self) -> None:
        match = _BLANK.match(self._text, self._position)
        self._position = match.end() if match else self._position
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position

    def _truncated(self, what: str) -> UserError:
        return UserError(
            f"{self._name} is truncated: it ends inside the {what} that begins on line {self._line}, after "
            f"{len(self._text)} characters; copy or download it again"
        )


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object. Raises UserError if it has a key twice, of which Python's reader would keep the last."""
    cells = dict(pairs)
    if len(cells) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"the key {twin!r} occurs twice in one object; keep one of them")
    return cells
