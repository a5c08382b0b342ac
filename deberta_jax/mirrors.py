"""Local copies of what is in a store, for everything that can only read and write local files.

The copy of gs://bucket/folder is stores/gs/bucket/folder in the cache (`cache_folder`). A list of versions, which is
kept beside the copies, shows which files are still those of the store, so that only others are fetched. Messages name
the address in place of the copy.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from . import stores
from .atomic_files import replace_file, write_file
from .cache_folder import cache_folder
from .embedded import embedded_folder
from .errors import MissingFileError, UserError
from .terminal import PRINTED_AS

_FOLDER, _VERSIONS = "stores", ".versions"
_COPIES = 8  # at once
_TEMPORARY = re.compile(r"(.*/)?(\..*\.(tmp|old)|\.(probe|shared)-[^/]*|[^/]*\.lock)(/.*)?")
_RESERVE = 1 << 28  # bytes that stay free on the disk
# Files that say that a folder is complete, which are written after all others.
_LAST = ("spm.model", "config.json", "manifest.json", "model.sha256", "_COMPLETE")


def local_path(address: str) -> Path:
    """Returns where the local copy of an address is, or would be."""
    protocol, _, rest = address.partition("://")
    parts = [part for part in rest.split("/") if part]
    if not parts or ".." in parts:
        raise UserError(f"{address} names no file or folder in a store; give {protocol}://BUCKET/NAME")
    folder = cache_folder().absolute() / _FOLDER / protocol
    PRINTED_AS[f"{folder}{os.sep}"] = f"{protocol}://"
    return folder.joinpath(*parts)


def is_local_copy(path: Path) -> bool:
    """Returns whether a path is in the folder of local copies."""
    return path.resolve().is_relative_to((cache_folder() / _FOLDER).resolve())


def fetch(address: str, *, wanted: Callable[[str], bool] = lambda _: True) -> Path:
    """Returns a local copy of a file or folder, after fetching what is new in it and removing what is gone.

    Args:
      wanted: whether to fetch a file, by its name in the folder (default: all).

    Raises:
      MissingFileError: there is nothing at the address.
      UserError: the disk has too little space.
      StoreError: the store refuses or does not answer.
    """
    mirror = Mirror(address)
    if not mirror.pull(wanted):
        raise MissingFileError(f"{address}: no such file or folder")
    return mirror.path


def local_copy(path: str | os.PathLike[str]) -> Path:
    """Returns a local path as it is, and of an address its local copy, as `fetch` does."""
    address = stores.address_of(path)
    return Path(path) if address is None else fetch(address)


def local_folder(source: str | os.PathLike[str]) -> Path:
    """Returns the folder of a model that is part of the package, of its address a local copy, or the path as it is.

    Raises:
      Exception: as `embedded.embedded_folder` and `fetch`.
    """
    return embedded_folder(source) or local_copy(source)


@contextlib.contextmanager
def written_to(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a local path to write to: `folder` itself, or of an address its local copy, which is then written back.

    Nothing is written to the store if the block fails.

    Raises:
      UserError: the store cannot be written.
    """
    address = stores.address_of(folder)
    if address is None:
        yield Path(folder)
        return
    mirror = Mirror.to_write(address)
    mirror.pull(keep_changes=True)
    yield mirror.path
    mirror.push()


@dataclasses.dataclass(frozen=True)
class _Copied:
    """A file that is equal here and there: its entry there, and the time of the local copy."""

    size: int
    version: str
    mtime_ns: int


class Mirror:
    """The local copy of a file or folder, which may be changed and written back.

    Attributes:
      address: the address.
      path: the local copy.
    """

    def __init__(self, address: str) -> None:
        self.address, self.path = address, local_path(address)
        digest = hashlib.sha256(address.encode()).hexdigest()[:32]
        self._list = cache_folder().absolute() / _FOLDER / _VERSIONS / f"{digest}.json"
        self._copied = self._read_list()
        self._writing = threading.Lock()

    @classmethod
    def to_write(cls, address: str) -> Self:
        """Returns the local copy of an address that can be written, with nothing fetched yet.

        Raises:
          UserError: as `stores.check_writable`.
        """
        mirror = cls(address)
        stores.check_writable(stores.bucket_folder(address))
        mirror.path.parent.mkdir(parents=True, exist_ok=True)
        return mirror

    def pull(self, wanted: Callable[[str], bool] = lambda _: True, *, keep_changes: bool = False) -> bool:
        """Fetches the wanted files that are new in the store, and removes the local copies of those that are gone.

        Args:
          wanted: whether to consider a file, by its name (default: all).
          keep_changes: keep what was changed here and could not be written back, unless the store has changed as well.

        Returns:
          Whether there is a wanted file at the address.
        """
        there = {name: entry for name, entry in stores.entries(self.address).items() if wanted(name)}
        new = [name for name, entry in there.items() if not self._is_copied(name, entry, keep_changes)]
        for name in [name for name in self._copied if wanted(name) and name not in there]:
            self._file(name).unlink(missing_ok=True)
            del self._copied[name]
        self._check_space(sum(there[name].size for name in new))
        if there.keys() == {""} and self.path.is_dir():
            shutil.rmtree(self.path)
        try:
            self._each(lambda name: self._fetch(name, there[name]), new)
        finally:
            self._write_list()
        return bool(there)

    def push(self, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Writes the wanted files that are new or changed to the store, and removes there those that are gone here.

        Files that say that their folder is complete are written last, and removed first.
        """
        with self._writing:
            here = {name: path for name in self._local_names() if wanted(name) and (path := self._file(name)).is_file()}
            gone = [name for name in self._copied if wanted(name) and name not in here]
            for name in sorted(gone, key=_is_last, reverse=True):
                stores.remove(stores.join(self.address, name))
                del self._copied[name]
            changed = [name for name in here if not self._is_unchanged(name)]
            self._each(self._put, [name for name in changed if not _is_last(name)])
            for name in sorted(filter(_is_last, changed), key=_order):
                self._put(name)
            if gone or changed:
                self._write_list()

    def _file(self, name: str) -> Path:
        return self.path / name if name else self.path

    def _local_names(self) -> list[str]:
        if self.path.is_file():
            return [""]
        names = (path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())
        return [name for name in names if not _TEMPORARY.fullmatch(name)]

    def _is_copied(self, name: str, entry: stores.Entry, keep_changes: bool) -> bool:
        copied = self._copied.get(name)
        same = copied is not None and (copied.size, copied.version) == (entry.size, entry.version)
        return same and (self._file(name).is_file() if keep_changes else self._is_unchanged(name))

    def _is_unchanged(self, name: str) -> bool:
        copied = self._copied.get(name)
        try:
            stat = self._file(name).stat()
        except OSError:
            return False
        return copied is not None and (stat.st_size, stat.st_mtime_ns) == (copied.size, copied.mtime_ns)

    def _fetch(self, name: str, entry: stores.Entry) -> None:
        address, path = stores.join(self.address, name), self._file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as partial:
            stores.fetch_file(address, partial)
            if (size := partial.stat().st_size) != entry.size:
                raise stores.StoreError(f"{address} has {size} bytes instead of {entry.size}: it was changed meanwhile")
        self._copied[name] = _Copied(entry.size, entry.version, path.stat().st_mtime_ns)

    def _put(self, name: str) -> None:
        path = self._file(name)
        try:
            before = path.stat().st_mtime_ns
            entry = stores.put_file(path, stores.join(self.address, name))
        except FileNotFoundError:
            if path.exists():
                raise
            return  # removed meanwhile
        self._copied[name] = _Copied(entry.size, entry.version, before)

    def _note(self, name: str) -> None:
        """Notes that a file is in the store which is not among the local files."""
        entry = stores.entry(stores.join(self.address, name))
        if entry is not None:
            self._copied[name] = _Copied(entry.size, entry.version, 0)

    def _each(self, action: Callable[[str], None], names: Iterable[str]) -> None:
        """Runs an action for each name, some at once. Raises the error of the first one that fails."""
        with concurrent.futures.ThreadPoolExecutor(_COPIES) as threads:
            futures = [threads.submit(action, name) for name in names]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _check_space(self, needed: int) -> None:
        folder = next(folder for folder in (self.path, *self.path.parents) if folder.is_dir())
        if needed and needed + _RESERVE > (free := shutil.disk_usage(folder).free):
            raise UserError(
                f"the copy of {self.address} needs {needed / 1e9:,.1f} GB, but the disk of {cache_folder()} has "
                f"{free / 1e9:,.1f} GB free; set DEBERTA_JAX_CACHE to a folder on a larger disk"
            )

    def _read_list(self) -> dict[str, _Copied]:
        try:
            return {name: _Copied(*fields) for name, fields in json.loads(self._list.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):  # then everything is fetched again
            return {}

    def _write_list(self) -> None:
        self._list.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._list, json.dumps({name: dataclasses.astuple(item) for name, item in self._copied.items()}))


def _is_last(name: str) -> bool:
    return name.rpartition("/")[2] in _LAST


def _order(name: str) -> int:
    """Returns the place of a file among those that are written last: what refers to others comes after them."""
    return _LAST.index(name.rpartition("/")[2])
