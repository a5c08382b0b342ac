"""Finds text files and reads their bytes, of which no one is left out: what cannot be read is an error."""

import errno
import glob
import gzip
import hashlib
import io
import lzma
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from deberta_jax import stores
from deberta_jax.errors import MissingFileError, UserError, one_line
from deberta_jax.stores import address_of
from deberta_jax.terminal import list_names

from . import storage

_CHUNK_BYTES = 1 << 20  # bytes per read
_XZ_MEMORY = 512 << 20  # bytes; `xz -9` makes files that need 65 MiB
_SUFFIXES = (".txt", ".gz", ".xz", ".zst", ".jsonl", ".ndjson", ".parquet")
_COMPRESSED = (".gz", ".xz", ".zst")
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

    Of a folder these are the files that end in one of _SUFFIXES, also in upper case and in subfolders, sorted by path.
    Hidden files and folders are left out. A path that does not exist may be a pattern with *, ?, [...] and **.

    Raises:
      TextError: if a file is missing, a broken link or no regular file, if a folder cannot be read or contains no text
        file, if a pattern matches nothing, or if `paths` is empty.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if address := address_of(path):
            files += _stored_files(address)
        elif path.is_dir():
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
        elif glob.has_magic(str(path)):
            files += _matching_files(path)
        else:
            raise TextError(f"no such file or folder: {path}")
    if not files:
        raise TextError("no text file was given; pass at least one file or folder")
    for file in files:
        if not address_of(file):
            _check_regular(file, file.stat().st_mode)
    return files


def _stored_files(address: str) -> list[Path]:
    """Returns the files of an address: that file, the texts of that folder, or those that match that pattern."""
    found = stores.entries(address)
    if "" in found:
        return [Path(address)]
    visible = [name for name in found if not any(part.startswith(".") for part in name.split("/"))]
    inside = [Path(stores.join(address, name)) for name in visible if Path(name).suffix.lower() in _SUFFIXES]
    if found and not inside:
        raise TextError(
            f"folder {address} contains no file ending in {', '.join(_SUFFIXES)}; pass the files themselves"
        )
    if not inside and glob.has_magic(address):
        inside = [Path(match) for match in stores.matching(address)]
        if not inside:
            raise TextError(f"no file matches {address}; correct the pattern")
    if not inside:
        raise TextError(f"no such file or folder: {address}")
    return inside


def file_version(path: Path) -> tuple[int, int]:
    """Returns the size of a file, and its modification time in ns; of a store a number that changes with the file.

    Raises:
      MissingFileError: there is no such file in the store.
    """
    if (address := address_of(path)) is None:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    if (entry := stores.entry(address)) is None:
        raise MissingFileError(f"{address}: no such file")
    return entry.size, int.from_bytes(hashlib.sha256(entry.version.encode()).digest()[:6])


def _matching_files(pattern: Path) -> list[Path]:
    files = [path for path in map(Path, sorted(glob.glob(str(pattern), recursive=True))) if not path.is_dir()]
    if not files:
        raise TextError(f"no file matches {pattern}; correct the pattern")
    if broken := [path for path in files if not path.exists()]:
        raise TextError(f"{broken[0]} is a broken link; correct it or delete it")
    return files


def inner_suffix(path: Path) -> str:
    """Returns the suffix of a file's content in small letters: ".jsonl" for a.jsonl.gz."""
    return (path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path).suffix.lower()


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
    target = _resolved(output)
    for path in map(Path, paths):
        source = _resolved(path)
        if target == source:
            raise UserError(f"output {output} is the text that is read; choose another folder")
        if (address_of(path) or path.is_dir()) and source in target.parents:
            raise UserError(
                f"output {output} is inside of the folder {path}, whose text is read; choose another folder"
            )


def _resolved(path: Path) -> Path:
    return path if address_of(path) else path.resolve()


def text_bytes(path: Path) -> Iterator[bytes]:
    """Yields the bytes of a file in chunks of bounded size; those of .gz, .xz and .zst uncompressed.

    Raises:
      TextError: if the file is not a regular file, is damaged, cannot be read, or changes meanwhile.
    """
    done = 0
    try:
        if address_of(path):
            before = file_version(path)
            with storage.open_binary(path) as file:
                for chunk in _uncompressed(path, file):
                    yield chunk
                    done += len(chunk)
            if before != file_version(path):
                raise _changed(path)
            return
        # A pipe that has replaced the file would block here for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            before = os.fstat(file.fileno())
            _check_regular(path, before.st_mode)
            for chunk in _uncompressed(path, file):
                yield chunk
                done += len(chunk)
            after = os.fstat(file.fileno())
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, _ZstdError) as error:
        raise TextError(f"{path}: damaged compressed file, after {done} bytes of text: {error}") from None
    except UserError:
        raise
    except OSError as error:
        raise TextError(f"{path} cannot be read, after {done} bytes of text: {error.strerror or error}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _changed(path)


def _changed(path: Path) -> TextError:
    return TextError(f"{path} was changed while it was read; start again when nothing writes to it")


def _uncompressed(path: Path, file: BinaryIO) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".xz":
        yield from _uncompressed_xz(file)
        return
    if suffix == ".zst":
        yield from _uncompressed_zst(file)
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


class _ZstdError(Exception):
    """The content of a .zst file is damaged."""


def _uncompressed_zst(file: BinaryIO) -> Iterator[bytes]:
    """Yields the content of all frames of a .zst file. Arrow also refuses whatever it cannot read after a frame."""
    import pyarrow

    if not file.seek(0, os.SEEK_END):
        raise EOFError("the file ends too early")
    file.seek(0)
    with (
        _duplicate(file) as own,  # Arrow closes it
        pyarrow.CompressedInputStream(pyarrow.PythonFile(own, "r"), "zstd") as stream,
    ):
        while True:
            try:
                chunk = stream.read(_CHUNK_BYTES)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise _ZstdError(one_line(error)) from None
            if not chunk:
                return
            yield chunk


def _duplicate(file: BinaryIO) -> BinaryIO:
    """Returns another object for an open local file, and a file of a store itself, which may be closed twice."""
    try:
        return os.fdopen(os.dup(file.fileno()), "rb")
    except io.UnsupportedOperation:
        return file


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
