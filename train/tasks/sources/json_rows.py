"""Reads the objects of a JSON file: one per line, several per line, spread over lines, or in a list."""

import json
import re
from collections.abc import Iterator
from typing import Any

from deberta_jax.errors import UserError
from deberta_jax.strict_json import twin_key

from .text_files import TextFile

_BLANK = re.compile(r"[ \t\r\n]*")
_LONGEST_SIGN = 16  # characters: more than "-Infinity" and the escapes of a surrogate pair have


def json_objects(text: TextFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each object of a text with the number of the line on which it begins.

    The objects may follow each other with or without line ends, as in concatenated files, and may be in a list.

    Raises:
      UserError: if the text is not JSON, ends too early, has other values, or has a key twice in one object.
    """
    reader = JsonReader(text)
    for line in reader.each():
        value = reader.value()
        if not isinstance(value, dict):
            raise UserError(f"{text.given}, line {line}: not a JSON object; write one object per line")
        yield line, value


class JsonReader:
    """A position in a JSON text, of which one value at a time is in memory.

    The iterators yield where a value begins; `value`, `members` or `items` must read it before the next one.
    """

    def __init__(self, text: TextFile) -> None:
        self._name, self._pieces = text.given, text.pieces()
        self._text = ""  # from the last value on, as far as it was read
        self._position = self._counted = 0  # in `_text`; `_line` is the line of `_counted`
        self._line = 1
        self._removed = self._column = 0  # characters before `_text`, in all and on its first line
        self._decoder = json.JSONDecoder(object_pairs_hook=without_twins)

    def each(self) -> Iterator[int]:
        """Yields the line of each value of the whole text; those of lists count one by one."""
        while not self._at_end():
            if self.at("["):
                yield from self.items()
            else:
                yield self._line

    def items(self) -> Iterator[int]:
        """Yields the line of each value of the list that comes next."""
        self._require("[", "list")
        if self._skip("]"):
            return
        while True:
            if self._at_end():
                raise self._truncated("list")
            yield self._line
            if not self._skip(","):
                break
        self._require("]", "list")

    def members(self) -> Iterator[str]:
        """Yields the key of each value of the object that comes next."""
        self._require("{", "object")
        keys: set[str] = set()
        if self._skip("}"):
            return
        while True:
            if not self.at('"'):
                self._require('"', "object")
            key = self.value()
            if key in keys:
                raise UserError(f"{self._name}, line {self._line}: {_twin(key)}")
            keys.add(key)
            self._require(":", "object")
            if self._at_end():
                raise self._truncated("object")
            yield key
            if not self._skip(","):
                break
        self._require("}", "object")

    def at(self, sign: str) -> bool:
        """Returns whether a sign comes next."""
        return not self._at_end() and self._text.startswith(sign, self._position)

    def value(self) -> Any:
        """Returns the next value."""
        while True:
            self._at_end()
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._read_more():
                    continue
                raise self._not_json(error) from None
            except RecursionError:
                raise UserError(
                    f"{self._name}, line {self._line}: not JSON (too many nested lists or objects)"
                ) from None
            except UserError as error:  # a key that occurs twice
                raise UserError(f"{self._name}, line {self._line}: {error}") from None
            except ValueError as error:  # a number that is too long
                raise UserError(f"{self._name}, line {self._line}: not JSON ({error})") from None
            if end == len(self._text) and isinstance(value, int | float) and self._read_more():
                continue  # the number may have more digits
            self._position = end
            return value

    def _at_end(self) -> bool:
        """Moves to the next sign and returns whether there is none."""
        while True:
            match = _BLANK.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                break
            if not self._read_more():
                break
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._position == len(self._text)

    def _skip(self, sign: str) -> bool:
        """Moves behind a sign if it comes next, and returns whether it does."""
        found = self.at(sign)
        self._position += found
        return found

    def _require(self, sign: str, what: str) -> None:
        if self._skip(sign):
            return
        if self._at_end():
            raise self._truncated(what)
        raise UserError(f"{self._name}, line {self._line}: not JSON (expecting ',' or {sign!r})")

    def _read_more(self) -> bool:
        """Reads at least as much again as is needed already, so that a long value is decoded few times.

        Returns whether there was any more text.
        """
        added: list[str] = []
        size, needed = 0, len(self._text) - self._position
        while size <= needed and (piece := next(self._pieces, None)) is not None:
            added.append(piece)
            size += len(piece)
        if not added:
            return False
        start = self._position
        self._line += self._text.count("\n", self._counted, start)
        newline = self._text.rfind("\n", 0, start)
        self._column = start - newline - 1 if newline >= 0 else self._column + start
        self._removed += start
        self._text = "".join([self._text[start:], *added])
        self._position = self._counted = 0
        return True

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Returns whether an error may only be due to the end of what was read so far."""
        return error.msg.startswith("Unterminated string") or error.pos + _LONGEST_SIGN >= len(self._text)

    def _not_json(self, error: json.JSONDecodeError) -> UserError:
        # The text ends inside a string or where a value or a sign is missing.
        if error.msg.startswith("Unterminated string") or error.pos >= len(self._text):
            return self._truncated("object")
        number = self._line + self._text.count("\n", self._counted, error.pos)
        column = error.colno + (self._column if error.lineno == 1 else 0)
        return UserError(
            f"{self._name}, line {number}: not JSON ({error.msg} at character {column}); "
            "write one object per line, or a list of objects"
        )

    def _truncated(self, what: str) -> UserError:
        return UserError(
            f"{self._name} is truncated: it ends inside the {what} that begins on line {self._line}, after "
            f"{self._removed + len(self._text)} characters; copy or download it again"
        )


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object, as a hook of Python's JSON reader. Raises UserError if it has a key twice."""
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise UserError(_twin(twin_key(pairs)))
    return cells


def _twin(key: str) -> str:
    return f"the key {key!r} occurs twice in one object; keep one of them"
