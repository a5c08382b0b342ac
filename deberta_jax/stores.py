"""Files in stores that have an address: gs://, s3://, memory:// and the other protocols of fsspec.

What a store cannot do shapes everything above this module: it renames no folder, appends to no file and has no locks.
A single file appears whole or not at all. So a folder counts as complete by a file that is written last.

A store that does not answer is waited for (PATIENCE). A refused access, or a bucket that does not exist, is an error at
once.
"""

import contextlib
import dataclasses
import datetime
import functools
import io
import logging
import os
import posixpath
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .errors import MissingFileError, MissingPackageError, UserError, one_line
from .store_errors import StoreError, as_fault, reason

PATIENCE = 180.0  # seconds for which a store that does not answer is tried again
_LONGEST_PAUSE = 20.0
_BLOCK_BYTES = 8 << 20  # per request of a file that is read in order

# The protocols of addresses. pathlib turns the two slashes of one into a single one, so that of an unknown protocol
# `name:/folder` could be a local path.
PROTOCOLS = (
    *("gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "hdfs", "webhdfs"),
    *("memory", "sftp", "ssh", "smb", "ftp", "lakefs", "dbfs", "http", "https"),
)
_ADDRESS = re.compile(rf"(?:({'|'.join(PROTOCOLS)}):(?:/{{1,2}}|$)|([a-z][a-z0-9+.-]+)://)(?!/)(.*)", re.DOTALL)
_NOT_STORES = ("hf", "tfds", "file")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # of this package

_LOG = logging.getLogger("deberta_jax")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file in a store: its size in bytes, and a text that changes with its content."""

    size: int
    version: str


def address_of(path: str | os.PathLike[str]) -> str | None:
    """Returns the address that a path is, such as gs://bucket/folder, or None if it is local.

    A `pathlib.Path` of an address, which has lost a slash, is one too. A local folder called `gs:` is given as its
    absolute path.
    """
    match = _ADDRESS.fullmatch(os.fspath(path) if isinstance(path, os.PathLike) else str(path))
    if match is None or match[2] in _NOT_STORES:
        return None
    return f"{match[1] or match[2]}://{match[3].rstrip('/')}"


def check_protocol(path: str | os.PathLike[str]) -> None:
    """Raises UserError if a path is an address of an unknown protocol, which pathlib would make a local path."""
    match = _ADDRESS.fullmatch(os.fspath(path))
    if match is not None and match[2] and match[2] not in _NOT_STORES:
        raise UserError(f"{match[2]}:// is an unknown protocol; there are {', '.join(PROTOCOLS)}")


def is_address(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is an address (see `address_of`)."""
    return address_of(path) is not None


def join(address: str, *names: str) -> str:
    """Returns the address of a file in a folder."""
    return "/".join([address.rstrip("/"), *filter(None, names)])


def parent(address: str) -> str:
    """Returns the address of the folder of a file."""
    return address.rpartition("/")[0]


def bucket_folder(address: str) -> str:
    """Returns the address of the folder of a file, or of its bucket, if the file is in none."""
    return parent(address) if "/" in address.partition("://")[2] else address


def name_of(address: str) -> str:
    """Returns the last name of an address."""
    return address.rpartition("/")[2]


# ------------------------------------------------------------------------------------------------------- reading


def entries(address: str) -> dict[str, Entry]:
    """Returns all files below a folder by their names in it, sorted; of a file, its entry under the name "".

    It is empty if there is nothing at the address.
    """

    def find(system: Any, key: str) -> dict[str, Entry]:
        try:
            found = system.find(key, detail=True)
        except FileNotFoundError:
            return {}
        files = {_relative(name, key): _entry(info) for name, info in found.items() if info.get("type") == "file"}
        # A folder that the console of a store created is an empty file, whose name is that of the folder.
        return {name: files[name] for name in sorted(files) if not (name == "" and len(files) > 1)}

    return _call(address, "list", find)


def names(address: str) -> list[str]:
    """Returns the names of the files and folders in a folder, sorted; none if there is no such folder."""

    def listed(system: Any, key: str) -> list[str]:
        try:
            found = system.ls(key, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({name for path in found if (name := _relative(path.rstrip("/"), key)) and "/" not in name})

    return _call(address, "list", listed)


def entry(address: str) -> Entry | None:
    """Returns the entry of a file, or None if there is no such file."""

    def info(system: Any, key: str) -> Entry | None:
        try:
            found = system.info(key)
        except FileNotFoundError:
            return None
        return _entry(found) if found.get("type") == "file" else None

    return _call(address, "read", info)


def exists(address: str) -> bool:
    """Returns whether there is a file or a folder."""
    return _call(address, "read", lambda system, key: bool(system.exists(key)))


def read(address: str, start: int = 0, length: int | None = None) -> bytes:
    """Returns the bytes of a file, or at most `length` of them from `start` on.

    Raises:
      MissingFileError: there is no such file.
    """
    if length == 0:
        return b""

    def content(system: Any, key: str) -> bytes:
        if start == 0 and length is None:
            return system.cat_file(key)
        try:
            return system.cat_file(key, start=start, end=None if length is None else start + length)
        except OSError:
            if start >= system.info(key)["size"]:  # of which some stores return nothing, and others an error
                return b""
            raise

    return _call(address, "read", content)


def matching(pattern: str) -> list[str]:
    """Returns the addresses of the files that match a pattern with *, ?, [...] and **, sorted."""

    def found(system: Any, key: str) -> list[str]:
        paths = system.glob(key, detail=True)
        return sorted(system.unstrip_protocol(path) for path, info in paths.items() if info.get("type") == "file")

    protocol = pattern.partition("://")[0]
    return [f"{protocol}://{path.partition('://')[2].lstrip('/')}" for path in _call(pattern, "list", found)]


def fetch_file(address: str, path: Path) -> None:
    """Writes the content of a file to a local path."""
    _call(address, "read", lambda system, key: system.get_file(key, str(path)))


@contextlib.contextmanager
def open_binary(address: str) -> Iterator[BinaryIO]:
    """Yields a file to read, also at any place of it. A read that fails is repeated.

    Raises:
      MissingFileError: there is no such file.
    """
    if (found := entry(address)) is None:
        raise MissingFileError(f"{address}: no such file")
    with _RangeReader(address, found.size) as raw, io.BufferedReader(raw, _BLOCK_BYTES) as file:
        yield file


class _RangeReader(io.RawIOBase):
    """A file of which every read is a request of its own."""

    def __init__(self, address: str, size: int) -> None:
        self._address, self._size, self._place = address, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._place))
        content = read(self._address, self._place, length)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


# ------------------------------------------------------------------------------------------------------- writing


def write(address: str, content: bytes) -> None:
    """Writes a file, which appears whole or not at all."""
    _call(address, "write", lambda system, key: _in_folder(system, key, lambda: system.pipe_file(key, content)))


def put_file(path: Path, address: str) -> Entry:
    """Writes a local file to an address, and returns its entry there.

    Raises:
      StoreError: the store has another number of bytes than the local file.
    """

    def put(system: Any, key: str) -> Entry:
        _in_folder(system, key, lambda: system.put_file(str(path), key))
        return _entry(system.info(key))

    written = _call(address, "write", put)
    if written.size != (size := path.stat().st_size):
        raise StoreError(f"{address} has {written.size} bytes instead of {size}: it was changed while it was written")
    return written


def copy(source: str, target: str) -> None:
    """Copies a file within a store, without passing it through this machine where the store can do that."""
    key = _open(target)[1]
    _call(source, "copy", lambda system, old: _in_folder(system, key, lambda: system.cp_file(old, key)))


def remove(address: str) -> None:
    """Removes a file, if it exists."""

    def delete(system: Any, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            system.rm_file(key)

    _call(address, "delete", delete)


def remove_folder(address: str) -> None:
    """Removes all files below a folder."""

    def delete(system: Any, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            system.rm(key, recursive=True)

    _call(address, "delete", delete)


def check_writable(folder: str) -> None:
    """Writes a small file into a folder and removes it, so that wrong credentials are found before any work.

    Raises:
      StoreError: the store cannot be written, or does not answer.
      MissingPackageError: the package for its protocol is not installed.
    """
    name = f".probe-{secrets.token_hex(8)}.tmp"

    def probe(system: Any, key: str) -> None:
        path = join(key, name)
        _in_folder(system, path, lambda: system.pipe_file(path, b"the store answers"))

    _call(folder, "write", probe)
    remove(join(folder, name))


# ---------------------------------------------------------------------------------------------------- connection


@functools.cache
def _system(protocol: str, process: int) -> Any:
    """Returns the file system of a protocol. Its threads do not survive a fork, so each process has its own."""
    del process
    import fsspec

    try:
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        install = f"pip install 'deberta-jax[{extra}]'" if extra else f"install it ({one_line(error):.200})"
        raise MissingPackageError(f"{protocol}:// needs a package: {install}") from None
    except ValueError:
        raise UserError(f"{protocol}:// is no protocol of fsspec; there are {', '.join(PROTOCOLS)}") from None


def _open(address: str) -> tuple[Any, str]:
    protocol, _, rest = address.partition("://")
    if ".." in rest.split("/"):
        raise UserError(f"{address} has the name '..', which stores do not have; write the address out")
    system = _system(protocol, os.getpid())
    return system, system._strip_protocol(address)


def _call(address: str, verb: str, action: Callable[[Any, str], Result]) -> Result:
    """Returns what `action` returns for the file system and the key of an address, and waits while it fails.

    Raises:
      MissingFileError: there is no such file or bucket.
      StoreError: access was denied, or the store has not answered for PATIENCE seconds.
    """
    deadline, pause = None, 1.0
    while True:
        try:
            return action(*_open(address))
        except UserError:
            raise
        except Exception as error:
            fault = as_fault(address, verb, error)
            if fault is not None:
                raise fault from error
            now = time.monotonic()
            if deadline is None:
                deadline = now + PATIENCE
                _LOG.warning("%s does not answer (%s); trying again for up to %g s", address, reason(error), PATIENCE)
            if now >= deadline:
                raise StoreError(
                    f"cannot {verb} {address}: the store has not answered for {PATIENCE:g} s ({reason(error)}); "
                    "repeat the command when it does"
                ) from error
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _entry(info: dict[str, Any]) -> Entry:
    fields = ("ETag", "generation", "md5Hash", "etag", "LastModified", "updated", "mtime", "modified", "created")
    version = next((info[field] for field in fields if info.get(field)), "")
    if isinstance(version, datetime.datetime):
        version = version.timestamp()
    return Entry(int(info["size"] or 0), str(version))


def _relative(name: str, key: str) -> str:
    return name.strip("/").removeprefix(key.strip("/")).lstrip("/")


def _in_folder(system: Any, key: str, action: Callable[[], Any]) -> None:
    """Writes a file. Makes its folder where the store has folders: in object stores that would create a bucket."""
    try:
        action()
    except FileNotFoundError:
        if system.protocol in ("gs", "s3") or {"gs", "gcs", "s3", "s3a", "abfs"} & set(system.protocol):
            raise
        system.makedirs(posixpath.dirname(key), exist_ok=True)
        action()
