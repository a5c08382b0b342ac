"""All access to files of the preparation of a corpus: reading, listing, atomic writing and removing.

Every other module of `preparation` names files by path and opens none itself. A path may be an address of a store,
such as gs://bucket/rows, whose files appear whole or not at all (see `deberta_jax.stores`).
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from deberta_jax import stores
from deberta_jax.atomic_files import replace_file, write_file
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.stores import address_of


def absolute(path: Path) -> Path:
    """Returns an absolute path; an address is one."""
    return path if address_of(path) else path.absolute()


def exists(path: Path) -> bool:
    """Returns whether there is a file or folder."""
    address = address_of(path)
    return stores.exists(address) if address else path.exists()


def is_file(path: Path) -> bool:
    """Returns whether there is a file."""
    address = address_of(path)
    return stores.entry(address) is not None if address else path.is_file()


def size(path: Path) -> int:
    """Returns the number of bytes of a file."""
    if (address := address_of(path)) is None:
        return path.stat().st_size
    if (entry := stores.entry(address)) is None:
        raise MissingFileError(f"{address}: no such file")
    return entry.size


def names(folder: Path) -> list[str]:
    """Returns the names of the complete files in a folder, sorted; none if there is no folder."""
    if address := address_of(folder):
        return [name for name in stores.names(address) if not _is_partial(name)]
    return sorted(name for name in os.listdir(folder) if not _is_partial(name)) if folder.is_dir() else []


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to read."""
    address = address_of(path)
    with stores.open_binary(address) if address else path.open("rb") as file:
        yield file


def read(path: Path, start: int = 0, length: int | None = None) -> bytes:
    """Returns the bytes of a file, or `length` of them from `start` on.

    Raises:
      UserError: the file has fewer bytes than were written, after a power failure for example.
      OSError: the file cannot be read.
    """
    if address := address_of(path):
        content = stores.read(address, start, length)
    else:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(-1 if length is None else length)
    if length is not None and len(content) != length:
        raise _incomplete(path, f"has {size(path)} bytes, fewer than the {start + length} that were written")
    return content


def read_json(path: Path) -> Any:
    """Returns the content of a file that `write_json` wrote.

    Raises:
      UserError: the file is not JSON, after a power failure for example.
      OSError: the file cannot be read.
    """
    content = read(path)
    try:
        return json.loads(content)
    except ValueError:
        raise _incomplete(path, f"has {size(path)} bytes that are not what was written") from None


def _incomplete(path: Path, fault: str) -> UserError:
    return UserError(f"{path} {fault}: the disk or the machine failed; repeat the command, which begins anew")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write(path, json.dumps(content).encode())


def write(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    if address := address_of(path):
        stores.write(address, content)
    else:
        write_file(path, content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write, which becomes `path` if the block succeeds."""
    with replacing_path(path) as partial, open(partial, "wb") as file:
        yield file
        file.close()


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[str]:
    """Yields the path of a local file to write, for libraries that open files themselves; it becomes `path`."""
    if (address := address_of(path)) is None:
        with replace_file(path) as partial:
            yield str(partial)
        return
    with tempfile.TemporaryDirectory(prefix="deberta-jax-") as folder:
        partial = Path(folder, path.name)
        yield str(partial)
        stores.put_file(partial, address)


def make_folder(folder: Path) -> None:
    """Makes a folder, unless it exists. A store has none."""
    if not address_of(folder):
        folder.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Removes a file, if it exists."""
    if address := address_of(path):
        stores.remove(address)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder with all its content."""
    if address := address_of(folder):
        stores.remove_folder(address)
    else:
        shutil.rmtree(folder)


def copy_folder(source: Path, target: Path, *, last: str) -> None:
    """Copies the files of a folder of a store to another one of the same store, the file `last` at the end.

    Raises:
      StoreError: a copy has another size.
    """
    old, new = address_of(source), address_of(target)
    assert old is not None
    assert new is not None
    sizes = {name: entry.size for name, entry in stores.entries(old).items()}
    for name in sorted(sizes, key=lambda name: name == last):
        stores.copy(stores.join(old, name), stores.join(new, name))
        entry = stores.entry(stores.join(new, name))
        if entry is None or entry.size != sizes[name]:
            raise stores.StoreError(f"{new}/{name} is not what was copied; repeat the command")


def remove_partial_files(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing."""
    if not address_of(folder) and folder.is_dir():
        for name in filter(_is_partial, os.listdir(folder)):
            remove(folder / name)


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
