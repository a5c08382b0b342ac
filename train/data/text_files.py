"""Finds text files and reads their bytes, of which no one is left out: what cannot be read is an error."""

import errno
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names

_CHUNK_BYTES = 1 << 20  # bytes per read
_XZ_MEMORY = 512 << 20  # bytes; `xz -9` makes files that need 65 MiB
_SUFFIXES = (".txt", ".gz", ".xz")
_NAMES_SHOWN = 5  # in a message
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class TextError(UserError):
    """A text file cannot be used. The message names the file and the position in it."""


def text_files(paths: Sequence[str | Path]) -> list[Path]:
    """Returns the files that `read_documents` reads, in order.

    Of a folder these are its *.txt, *.gz and *.xz files, also in upper case and in subfolders, sorted by path. Hidden
    files and folders are left out.

    Raises:
      TextError: if a file is missing, a broken link or no regular file, if a folder cannot be read or contains no text
        file, or if `paths` is empty.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [file for file in _visible_files(path) if file.suffix.lower() in _SUFFIXES]
            if not inside:
                raise TextError(
                    f"folder {path} contains no file ending in {', '.join(_SUFFIXES)}; pass the files themselves"
                )
            if broken := [file for file in inside if not file.exists()]:
                raise TextError(f"{broken[0]} is a broken link; correct it or delete it")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise TextError(f"no such file or folder: {path}")
    if not files:
        raise TextError("no text file was given; pass at least one file or folder")
    for file in files:
        _check_regular(file, file.stat().st_mode)
    return files


def describe_ignored(paths: Sequence[str | Path]) -> str:
    """Returns a line that names the files in the given folders which `text_files` leaves out because of their names.

    It is "" if there are none.
    """
    folders = [path for path in map(Path, paths) if path.is_dir()]
    ignored = [file for folder in folders for file in _visible_files(folder) if file.suffix.lower() not in _SUFFIXES]
    if not ignored:
        return ""
    names = list_names(ignored, most=_NAMES_SHOWN)
    return f"not read, because they do not end in {', '.join(_SUFFIXES)}: {names}"


def refuse_output(output: Path, paths: Sequence[str | Path]) -> None:
    """Raises UserError if a command would write into or over the text that it reads."""
    target = output.resolve()
    for path in map(Path, paths):
        source = path.resolve()
        if target == source:
            raise UserError(f"output {output} is the text that is read; choose another folder")
        if path.is_dir() and source in target.parents:
            raise UserError(
                f"output {output} is inside of the folder {path}, whose text is read; choose another folder"
            )


def text_bytes(path: Path) -> Iterator[bytes]:
    """Yields the uncompressed bytes of a file in chunks of bounded size.

    Raises:
      TextError: if the file is not a regular file, is damaged, cannot be read, or changes meanwhile.
    """
    done = 0
    try:
        # A pipe that has replaced the file would block here for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            before = os.fstat(file.fileno())
            _check_regular(path, before.st_mode)
            for chunk in _uncompressed(path, file):
                yield chunk
                done += len(chunk)
            after = os.fstat(file.fileno())
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise TextError(f"{path}: damaged compressed file, after {done} bytes of text: {error}") from None
    except OSError as error:
        raise TextError(f"{path} cannot be read, after {done} bytes of text: {error.strerror or error}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise TextError(f"{path} was changed while it was read; start again when nothing writes to it")


def _uncompressed(path: Path, file: BinaryIO) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".xz":
        yield from _uncompressed_xz(file)
        return
    readable = gzip.GzipFile(fileobj=file) if suffix == ".gz" else file
    while chunk := readable.read(_CHUNK_BYTES):
        yield chunk


def _uncompressed_xz(file: BinaryIO) -> Iterator[bytes]:
    """Yields the content of all streams of an .xz file. `lzma.open` ignores whatever it cannot read after the first."""
    decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
    while True:
        data = b""
        if decoder.eof:
            data = decoder.unused_data.lstrip(b"\0")  # zeros may separate streams
            while not data:
                if not (block := file.read(_CHUNK_BYTES)):
                    return
                data = block.lstrip(b"\0")
            decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        elif decoder.needs_input and not (data := file.read(_CHUNK_BYTES)):
            raise EOFError("the file ends too early")
        if chunk := decoder.decompress(data, _CHUNK_BYTES):
            yield chunk


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise TextError(f"{path} is {kind}, not a regular file; write the text into a file")


def _visible_files(folder: Path) -> list[Path]:
    """Returns the files in a folder and its subfolders, sorted by path. Links are followed, each folder once."""
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            files += [Path(parent, name) for name in names if not name.startswith(".")]
        seen.add(real)
    return sorted(files)


def _refuse_folder(error: OSError) -> None:
    if error.errno != errno.ENOENT or not os.path.islink(error.filename):
        raise TextError(f"folder {error.filename} cannot be read: {error.strerror}; correct that or remove it")
