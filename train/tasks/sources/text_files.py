"""Reads the text of local files, and says in one line what a file is that is not text."""

import codecs
import dataclasses
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from deberta_jax.errors import MissingFileError, UserError

_PIECE = 1 << 20
_HEAD = 4096
_GZIP = b"\x1f\x8b"
# The first bytes of files that people give by mistake, and what to do about each.
_FOREIGN = {
    b"PK\x03\x04": "is a ZIP archive, as Excel's .xlsx files are; unpack it, or save the sheet as .csv in UTF-8",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook; save the sheet as .csv in UTF-8",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xfd7zXZ\x00": "is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"version https://git-lfs": "is a pointer of Git LFS, not the data; fetch the data with `git lfs pull`",
}
# UTF-32 comes first, because its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A local file of text in UTF-8, whose content was checked. It is read in pieces, as often as necessary.

    A byte-order mark at the start and the line ends at the end are left out: a blank line at the very end is no row;
    elsewhere it is a row with missing fields.

    Attributes:
      given: the path as the user wrote it.
      size: number of bytes of the text.
      head: the first characters.
    """

    given: str
    size: int
    head: str

    def pieces(self) -> Iterator[str]:
        """Yields the text in pieces of up to a million characters."""
        held = ""  # line ends, which may be those at the end
        with _open(self.given) as data, io.TextIOWrapper(data, "utf-8-sig", newline="") as text:
            while piece := text.read(_PIECE):
                piece = held + piece
                content = piece.rstrip("\r\n")
                held = piece[len(content) :]
                yield content

    def lines(self, *, only_newlines: bool = True) -> Iterator[str]:
        """Yields the lines with their ends, except that of the last line.

        Args:
          only_newlines: whether only "\\n" ends a line; otherwise "\\r" does as well.
        """
        held: list[str] = []  # the newest line with content and the blank ones after it
        with (
            _open(self.given) as data,
            io.TextIOWrapper(data, "utf-8-sig", newline="\n" if only_newlines else "") as text,
        ):
            for line in text:
                if line.strip("\r\n"):
                    yield from held
                    held = []
                held.append(line)
        yield from (line.rstrip("\r\n") for line in held[:1])


def open_text(given: str) -> TextFile:
    """Returns a text file after a first reading. Data in gzip is decompressed.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the file is damaged, empty, not UTF-8 or no text at all.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{given}: no such file")
    with path.open("rb") as file:
        check_is_data(given, file.read(_HEAD))
    checked = _Checked(given)
    try:
        with _open(given) as data:
            while piece := data.read(_PIECE):
                checked.add(piece)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{given}: damaged or incomplete gzip file ({error})") from None
    checked.end()
    return TextFile(given, checked.size, checked.head)


def check_is_data(given: str, data: bytes) -> None:
    """Raises UserError if data are those of a known other thing, such as a web page or a pointer of Git LFS."""
    for start, reason in _FOREIGN.items():
        if data.startswith(start):
            raise UserError(f"{given} {reason}")
    if data.removeprefix(codecs.BOM_UTF8)[:200].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{given} is a web page (HTML or XML), not the data; download the file itself")


def check_is_text(given: str, start: bytes) -> None:
    """Raises UserError if the first bytes of a file are those of Parquet, UTF-16 or UTF-32, or as `check_is_data`."""
    check_is_data(given, start)
    if start.startswith(b"PAR1"):
        raise UserError(f"{given} is a Parquet file; give it a name that ends in .parquet")
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            raise UserError(f"{given} is in {encoding}; save it as UTF-8 (iconv -f {encoding} -t UTF-8)")


def _open(given: str) -> io.BufferedReader | gzip.GzipFile:
    """Opens a file whose content is compressed with gzip or not."""
    path = Path(given).expanduser()
    file = path.open("rb")
    start = file.peek(len(_GZIP))
    if path.suffix == ".gz" or start.startswith(_GZIP):
        file.close()
        return gzip.open(path)
    return file


class _Checked:
    """The content of a file so far, of which only the first characters are kept.

    Attributes:
      size: number of bytes.
      head: the first characters without a byte-order mark.
    """

    def __init__(self, given: str) -> None:
        self._given = given
        self.size, self.head = 0, ""
        self._lines, self._blank = 0, True
        self._pending = b""  # the first bytes of a character

    def add(self, data: bytes) -> None:
        """Adds the next bytes. Raises UserError if they are no text."""
        if not self.size:
            self._check_start(data)
        # NUL bytes are valid UTF-8, but in practice they come from UTF-16 without a mark, or from a damaged file.
        if (offset := data.find(b"\0")) >= 0:
            likely = "; the file seems to be in UTF-16" if data[:2000].count(b"\0") > len(data[:2000]) // 4 else ""
            raise UserError(
                f"{self._place(data, offset)}: NUL byte at offset {self.size + offset}{likely}; save the file as UTF-8"
            )
        self._decode(data, final=False)
        self._lines += data.count(b"\n")
        self._blank = self._blank and not data.removeprefix(codecs.BOM_UTF8).strip(b"\r\n")
        self.size += len(data)

    def end(self) -> None:
        """Raises UserError if the content ends inside a character, or there is none."""
        self._decode(b"", final=True)
        if self._blank:
            raise UserError(f"{self._given} is empty")

    def _check_start(self, data: bytes) -> None:
        check_is_text(self._given, data)
        self.head = data[:_HEAD].decode(errors="ignore").removeprefix("\ufeff")

    def _decode(self, data: bytes, *, final: bool) -> None:
        data, before = self._pending + data, len(self._pending)
        try:
            _, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            offset = self.size - before + error.start
            raise UserError(
                f"{self._place(data, error.start)}: byte {data[error.start]:#04x} at offset {offset} is not UTF-8; "
                "save the file as UTF-8 (from Windows or Latin-1: iconv -f WINDOWS-1252 -t UTF-8)"
            ) from None
        self._pending = data[used:]

    def _place(self, data: bytes, offset: int) -> str:
        line = self._lines + data.count(b"\n", 0, offset) + 1
        return f"{self._given}, line {line}"
