"""What may reach a terminal: text without control characters, and lists and names of bounded length.

Texts, names of files and classes, and messages of other libraries may contain escape sequences that move the cursor,
set the title of the window or hide what was printed. Every line for people goes through `printable`; files keep the
exact text. `console` does the same for tables and colors.
"""

import contextlib
import logging
import numbers
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, TextIO

LONGEST_LINE = 1500  # characters of a message
PRINTED_AS: dict[str, str] = {}  # beginnings of paths, and what messages have in their place (see `mirrors`)
_LONGEST_NAME = 200  # characters of a name in a list
_MOST_NAMES = 8  # in a list

# Characters that a terminal obeys or does not show: controls (C0, DEL, C1), line separators, format characters such as
# bidirectional overrides and zero-width spaces, halves of surrogate pairs, and code points that are no characters.
# Signs of Arabic, Kaithi and Egyptian texts, which Unicode counts as format characters, are visible and stay.
_HIDDEN = (
    "\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
# Persian, the scripts of India and emoji need the joiners U+200C and U+200D, which do nothing after an ASCII character.
_JOINER = "(?:(?<=[\0-\x7f\u200c\u200d])|^)[\u200c\u200d]"
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"  # England, Scotland, Wales, ...
_LINES = re.compile(f"({_FLAG})|[{_HIDDEN}]|{_JOINER}")
_ONE_LINE = re.compile(f"({_FLAG})|[{_HIDDEN}\t\n]|{_JOINER}")
# Sequences of progress bars, which other libraries write to standard error, and of colors.
_BARS = re.compile("(\x1b\\[[0-9]*[AK]|\r)")
_ONE_SLASH = re.compile(r"(?<![\w./])(gs|gcs|s3|s3a|az|abfs|abfss|hdfs|memory):/(?![/\s])")  # of pathlib
_COLORS_AND_BARS = re.compile("(\x1b\\[[0-9;]*[mAK]|\r)")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Returns a text in which what a terminal would obey or hide is visible, as `\x1b` or `\u202e`.

    Letters, signs and emoji of every script stay as they are. Applying it twice changes nothing.

    Args:
      text: any text, also with halves of surrogate pairs.
      lines: keep line feeds and tabs (default: they are made visible as well).
    """
    return (_LINES if lines else _ONE_LINE).sub(lambda match: match[1] or _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shorten(text: str, length: int = _LONGEST_NAME) -> str:
    """Returns a text of at most `length` characters: the middle of a longer one is left out."""
    if len(text) <= length:
        return text
    end = (length - 5) // 3
    return f"{text[: length - 5 - end]} ... {text[-end:]}"


def list_names(names: Collection[Any], *, most: int = _MOST_NAMES, show: Callable[[Any], str] = str) -> str:
    """Returns the first names of a list as text of bounded length, and how many more there are; "nothing" if empty.

    Args:
      names: the names, or other objects.
      most: number of names to show.
      show: returns the text of a name.
    """
    texts = [shorten(printable(shorten(show(name)))) for name, _ in zip(names, range(most), strict=False)]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(texts) + more if texts else "nothing"


def quote_names(names: Collection[Any]) -> str:
    """Returns a list as `list_names` does, with each name in quotation marks, because it may have spaces or commas."""
    return list_names(names, show=repr)


def with_addresses(text: str) -> str:
    """Returns a text in which paths of local copies of a store are its addresses, with both slashes."""
    for path, address in PRINTED_AS.items():
        text = text.replace(path, address)
    return _ONE_SLASH.sub(r"\1://", text)


def message_text(text: str) -> str:
    """Returns a message as it may be printed: visible, and at most LONGEST_LINE characters long."""
    return shorten(
        printable(shorten(with_addresses(text), LONGEST_LINE).replace("\r\n", "\n"), lines=True), LONGEST_LINE
    )


def say(text: str, *, error: bool = False) -> None:
    """Prints a message to standard output, or to standard error. Its lines are made visible and shortened.

    If the reader of the stream is gone, nothing more is written to it. A message to standard error that cannot be
    written, because its file is on a full disk or closed, is dropped: it must not end a run, or keep it from ending.

    Raises:
      OSError: A message to standard output cannot be written.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print("\n".join(map(message_text, text.split("\n"))), file=stream, flush=True)
    except BrokenPipeError:
        discard(stream)
    except (OSError, ValueError):
        if not error:
            raise


def discard(stream: TextIO) -> None:
    """Redirects a stream whose reader is gone to nowhere: Python flushes it at exit, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class PrintableRecord(logging.LogRecord):
    """A record of a log whose message is `message_text`."""

    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        return message_text(super().getMessage())


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Makes printable what other libraries print inside the context: standard error and the logs of Python.

    Handlers of logs that exist already would write to the standard error of before, so their messages are changed.
    """
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(PrintableRecord)
    try:
        with contextlib.redirect_stderr(PrintableStream(sys.stderr)):
            yield
    finally:
        logging.setLogRecordFactory(factory)


class PrintableStream:
    """A stream on which only progress bars and, on a terminal with colors, colors are obeyed.

    It is for what other libraries print. Everything but writing is that of the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        has_colors = stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._stream, self._obeyed = stream, _COLORS_AND_BARS if has_colors else _BARS

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        parts = self._obeyed.split(text)
        parts[::2] = [printable(part, lines=True) for part in parts[::2]]  # odd places are the sequences
        self._stream.write("".join(parts))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)


def shown_number(value: float) -> str:
    """Returns a number for a message: whole numbers exactly, unless they have more than some 40 digits."""
    if not isinstance(value, numbers.Integral):
        return f"{value:g}"
    bits = int(value).bit_length()
    return str(value) if bits <= 128 else f"a whole number of {bits} bits"
