"""Reads the text of local files, and says in one line what a file is that is not text."""

import codecs
import gzip
import zlib
from pathlib import Path

from deberta_jax.errors import MissingFileError, UserError

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


def read_text(given: str) -> str:
    """Returns the text of a file without the line ends at its end. Data in gzip is decompressed.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the file is damaged, empty, not UTF-8 or no text at all.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{given}: no such file")
    data = path.read_bytes()
    check_is_data(given, data)
    if path.suffix == ".gz" or data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{given}: damaged or incomplete gzip file ({error})") from None
        check_is_data(given, data)
    if data.startswith(b"PAR1"):
        raise UserError(f"{given} is a Parquet file; give it a name that ends in .parquet")
    text = _decode(given, data)
    # A blank line at the very end is no row; elsewhere it is a row with missing fields.
    text = text.removeprefix("\ufeff").rstrip("\r\n")
    if not text:
        raise UserError(f"{given} is empty")
    return text


def check_is_data(given: str, data: bytes) -> None:
    """Raises UserError if data are those of a known other thing, such as a web page or a pointer of Git LFS."""
    for start, reason in _FOREIGN.items():
        if data.startswith(start):
            raise UserError(f"{given} {reason}")
    if data.removeprefix(codecs.BOM_UTF8)[:200].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{given} is a web page (HTML or XML), not the data; download the file itself")


def _decode(given: str, data: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise UserError(f"{given} is in {encoding}; save it as UTF-8 (iconv -f {encoding} -t UTF-8)")
    # NUL bytes are valid UTF-8, but in practice they come from UTF-16 without a mark, or from a damaged file.
    if (offset := data.find(b"\0")) >= 0:
        likely = "; the file seems to be in UTF-16" if data[:2000].count(b"\0") > len(data[:2000]) // 4 else ""
        raise UserError(
            f"{given}, line {_line(data, offset)}: NUL byte at offset {offset}{likely}; save the file as UTF-8"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{given}, line {_line(data, error.start)}: byte {data[error.start]:#04x} at offset {error.start} is not "
            "UTF-8; save the file as UTF-8 (from Windows or Latin-1: iconv -f WINDOWS-1252 -t UTF-8)"
        ) from None


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1
