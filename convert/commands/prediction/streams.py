"""The bytes of an input of `predict`: a file, compressed or not, or standard input. They are read once, in order."""

import codecs
import contextlib
import gzip
import io
import lzma
import os
import select
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deberta_jax.errors import UserError

from ....train.tasks.sources.text_files import check_is_text

STANDARD_INPUT = "-"
COMPRESSED = (".gz", ".xz")
_HEAD = 4096
_PATIENCE = 0.05  # seconds to wait for the next line of a pipe, so that a fast writer fills whole batches
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


def input_name(given: str) -> str:
    """Returns the name of an input in messages."""
    return "standard input" if given == STANDARD_INPUT else given


class Stream:
    """An open input.

    Attributes:
      name: The input for messages.
      head: The first bytes.
    """

    def __init__(self, given: str) -> None:
        """Opens an input.

        Args:
          given: A path, or "-" for standard input.

        Raises:
          OSError: It cannot be opened.
          UserError: It is damaged, or known not to be text in UTF-8.
        """
        self.name = input_name(given)
        self._raw, self._size = _open(given)
        self._data = _decompressed(given, self._raw)
        try:
            with self._reading():
                self.head = self._data.peek(_HEAD)[:_HEAD]
            _check_head(self.name, self.head)
        except BaseException:
            self.close()
            raise

    def lines(self) -> Iterator[bytes]:
        """Yields the lines without their ends, and without the blank ones at the end."""
        blank, mark = 0, codecs.BOM_UTF8  # as Windows writes it
        while True:
            with self._reading():
                line = self._data.readline()
            if not line:
                return
            line, mark = line.removeprefix(mark).rstrip(b"\r\n"), b""
            if not line:
                blank += 1
                continue
            for _ in range(blank):
                yield b""
            blank = 0
            yield line

    def ready(self) -> bool:
        """Returns whether the next line can be read at once. Only a pipe or a terminal may have to wait for it."""
        if not isinstance(self._raw, _Pipe):
            return True
        with self._raw.not_waiting():
            # Of blank lines, `lines` reads what follows.
            return b"\n" in self._data.peek().lstrip(b"\r\n") or self._raw.has_data(_PATIENCE)

    def share(self) -> float:
        """Returns how much of the input was read, 0 to 1; 0 where its size is unknown."""
        return self._raw.tell() / self._size if self._size else 0.0

    def close(self) -> None:
        if self._raw is not sys.stdin.buffer and not isinstance(self._raw, _Pipe):
            self._data.close()
            self._raw.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            raise UserError(f"{self.name}: damaged or incomplete compressed file ({error})") from None


def _check_head(name: str, head: bytes) -> None:
    check_is_text(name, head)
    if head[:2000].count(b"\0") > len(head[:2000]) // 4:
        raise UserError(f"{name} has NUL bytes, as files in UTF-16 or of another program have; save it as UTF-8")


class _Pipe(io.RawIOBase):
    """Standard input that is not a file. Its bytes arrive when another program, or a person, has written them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._waits = descriptor, True

    def readable(self) -> bool:
        return True

    def has_data(self, seconds: float) -> bool:
        """Returns whether bytes, or the end, can be read within this time."""
        return bool(select.select([self._descriptor], [], [], seconds)[0])

    @contextlib.contextmanager
    def not_waiting(self) -> Iterator[None]:
        """Lets `readinto` return nothing where it would wait."""
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def readinto(self, buffer: Any, /) -> int | None:
        if not self._waits and not self.has_data(0):
            return None
        data = os.read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _open(given: str) -> tuple[Any, int]:
    """Returns the bytes of an input as they are stored, and their number; 0 if it is a pipe."""
    if given == STANDARD_INPUT:
        try:
            descriptor = sys.stdin.fileno()
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        except (OSError, ValueError):  # replaced by an object of Python
            return sys.stdin.buffer, 0
        return (sys.stdin.buffer if is_file or os.name == "nt" else _Pipe(descriptor)), 0  # Windows cannot `select` it
    path = Path(given).expanduser()
    file = path.open("rb")
    status = path.stat()
    return file, status.st_size if stat.S_ISREG(status.st_mode) else 0


def _decompressed(given: str, raw: Any) -> io.BufferedReader:
    if given.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))  # pyright: ignore[reportArgumentType]
    if given.endswith(".xz"):
        return io.BufferedReader(lzma.LZMAFile(raw))  # pyright: ignore[reportArgumentType]
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)
