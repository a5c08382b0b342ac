"""The bytes of an input of `predict`: a file, compressed or not, or standard input. They are read once, in order."""

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
from typing import Any, BinaryIO

from deberta_jax.errors import UserError

from ....train.tasks.sources.text_files import check_is_text

STANDARD_INPUT = "-"
COMPRESSED = (".gz", ".xz")
_HEAD = 4096
_MARK = b"\xef\xbb\xbf"  # UTF-8 with a byte-order mark, as Windows writes it
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


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
        self.name = "standard input" if given == STANDARD_INPUT else given
        self._is_standard_input = given == STANDARD_INPUT
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
        blank, mark = 0, _MARK
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

    def share(self) -> float:
        """Returns how much of the input was read, 0 to 1; 0 where its size is unknown."""
        return self._raw.tell() / self._size if self._size else 0.0

    def waits(self) -> bool:
        """Returns whether the next line has to be waited for: the program that writes it has not yet begun it."""
        pipe = self._raw.raw if isinstance(self._raw, io.BufferedReader) else None
        if not isinstance(pipe, _Pipe):
            return False
        pipe.waits = False
        try:
            return not self._data.peek(1).lstrip(b"\r\n")  # of blank lines, `lines` waits for what follows
        finally:
            pipe.waits = True

    def close(self) -> None:
        if not self._is_standard_input:
            self._data.close()
            self._raw.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            raise UserError(f"{self.name}: damaged or incomplete compressed file ({error})") from None


class _Pipe(io.RawIOBase):
    """Standard input.

    Attributes:
      waits: Whether reading waits for data. Otherwise it returns None if there are none.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.waits = descriptor, True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        if not self.waits and not select.select([self._descriptor], [], [], 0)[0]:
            return None
        data = os.read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _check_head(name: str, head: bytes) -> None:
    check_is_text(name, head)
    if head[:2000].count(b"\0") > len(head[:2000]) // 4:
        raise UserError(f"{name} has NUL bytes, as files in UTF-16 or of another program have; save it as UTF-8")


def _open(given: str) -> tuple[BinaryIO, int]:
    """Returns the bytes of an input as they are stored, and their number; 0 if it is a pipe."""
    if given == STANDARD_INPUT:
        return _standard_input(), 0
    path = Path(given).expanduser()
    file = path.open("rb")
    status = path.stat()
    return file, status.st_size if stat.S_ISREG(status.st_mode) else 0


def _standard_input() -> BinaryIO:
    """Returns standard input, as a pipe that can be asked whether it waits where the system can say so."""
    try:
        descriptor = sys.stdin.fileno()
    except io.UnsupportedOperation:  # another object in place of the stream
        return sys.stdin.buffer
    return io.BufferedReader(_Pipe(descriptor)) if os.name == "posix" else sys.stdin.buffer


def _decompressed(given: str, raw: BinaryIO) -> io.BufferedReader:
    if given.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))  # pyright: ignore[reportArgumentType]
    if given.endswith(".xz"):
        return io.BufferedReader(lzma.LZMAFile(raw))  # pyright: ignore[reportArgumentType]
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # pyright: ignore[reportArgumentType]
