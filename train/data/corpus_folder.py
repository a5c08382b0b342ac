"""The folder of a new corpus, which gets its name when it is complete.

What killed processes left is continued by the same work, and removed by any other.
"""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from deberta_jax import stores
from deberta_jax.errors import UserError, write_errno
from deberta_jax.stores import address_of

from . import storage
from .corpus import MANIFEST, ROW_FILE_NAME
from .work_folder import UnfinishedWorkError, find_leftovers, open_work_folder, work_folder_name

_LOG = logging.getLogger("deberta_jax")


def clear_leftovers(folder: Path, *, keep: Path) -> None:
    """Removes what killed processes left of making the folder, and logs it.

    Args:
      keep: the work folder of the same work, which stays unless the folder is complete. Files that were moved from it
        are moved back.

    Raises:
      UserError: if another process is making the folder.
    """
    complete = storage.exists(folder / MANIFEST)
    if address := address_of(folder):
        _warn_of_leftovers(address, keep=keep.name, complete=complete)
        return
    absolute = folder.absolute()
    parents = [absolute.parent, *([absolute] if folder.is_dir() else [])]
    for parent in parents:
        unused, unknown = find_leftovers(parent, folder.resolve().name)
        for path in unknown:
            if path != keep:
                _LOG.warning("%s is left of another run; delete it, unless that run is still making this corpus", path)
            elif not complete:
                _LOG.warning("%s was begun elsewhere, by a run that must have ended: this one continues it", path)
        for path in [*unused, *(path for path in unknown if path == keep)]:
            moved = [] if complete else _moved_files(path / "corpus", folder)
            if path == keep and not complete:
                for file in moved:
                    file.rename(path / "corpus" / file.name)
                continue
            for file in moved:
                file.unlink()
            shutil.rmtree(path)
            _LOG.warning("removed %s, which a killed run had left", path)


def _warn_of_leftovers(folder: str, *, keep: str, complete: bool) -> None:
    """Logs what other processes left in a store, which has no locks: they may be at work."""
    for name in stores.names(stores.parent(folder)):
        if not re.fullmatch(rf"\.{re.escape(stores.name_of(folder))}\.[0-9a-f]+\.tmp", name):
            continue
        path = stores.join(stores.parent(folder), name)
        if name != keep or complete:
            _LOG.warning("%s is left of another run; delete it, unless that run is still making this corpus", path)
        else:
            _LOG.warning("%s was begun by a run that must have ended: this one continues it", path)


def _moved_files(source: Path, folder: Path) -> list[Path]:
    """Returns the files that a killed process has moved from its work to the folder of the corpus."""
    files = [folder / name for name in _listed_files(source / MANIFEST)]
    return [file for file in files if file.exists()]


def _listed_files(manifest: Path) -> list[str]:
    """Returns the files of a manifest, none if it is not complete, because then no file has been moved."""
    try:
        fields = json.loads(manifest.read_bytes())
        names = [str(file["name"]) for split in ("train", "held_out") for file in fields[split]["files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [name for name in names if Path(name).name == name]  # never a file of another folder


def check_free(folder: Path) -> None:
    """Raises UserError if an existing folder cannot receive a corpus.

    It may hold what a killed process has left there, and lost+found, which is in every new file system.
    """
    if address := address_of(folder):
        stores.check_writable(stores.parent(address))
        # Files of rows may be what a killed process has copied, and are replaced.
        if others := [name for name in stores.names(address) if not ROW_FILE_NAME.fullmatch(name)]:
            raise UserError(
                f"{address} exists and is not a prepared corpus, but has {others[0]!r}; delete it or choose another "
                "folder"
            )
        return
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a broken link; delete it or choose another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder")
    for path in folder.iterdir():
        if path.name != "lost+found" and not (path.name.startswith(".") and path.suffix == ".tmp"):
            raise UserError(
                f"{folder} exists and is not a prepared corpus, but has {path.name!r}; delete it or choose another "
                "folder"
            )


def work_parent(folder: Path) -> Path:
    """Returns where the work folder of a corpus is: in its folder if that exists, which may be a mount point."""
    return folder if not address_of(folder) and folder.exists() else folder.parent


@contextlib.contextmanager
def work_folder(folder: Path, digest: str) -> Iterator[Path]:
    """Yields the folder in which a corpus is made, and says where it is if the work can be continued."""
    if address_of(folder):
        with _work_in_store(folder, digest) as path:
            yield path
        return
    parent, stack = work_parent(folder), contextlib.ExitStack()
    with writing(folder):
        parent.mkdir(parents=True, exist_ok=True)
        path = stack.enter_context(open_work_folder(parent, folder.resolve().name, digest))
    try:
        with stack:
            yield path
    except BaseException:
        if path.exists():
            _LOG.warning("%s has what is complete; the same command continues from there", path)
        raise


@contextlib.contextmanager
def _work_in_store(folder: Path, digest: str) -> Iterator[Path]:
    """Yields the work folder of a corpus in a store, which has no locks: two processes may do the same work at once.

    Both write the same files, so that this only costs time.
    """
    path = folder.parent / work_folder_name(folder.name, digest)
    try:
        yield path
    except BaseException as error:
        if isinstance(error, UserError) and not isinstance(error, UnfinishedWorkError | stores.StoreError):
            storage.remove_folder(path)
        else:
            _LOG.warning("%s has what is complete; the same command continues from there", address_of(path))
        raise
    storage.remove_folder(path)


def move_into_place(complete: Path, folder: Path) -> None:
    """Moves a complete corpus to `folder`.

    An existing folder may be a mount point, a link or the current folder, none of which can be replaced. So the files
    are moved into it, the manifest last.
    """
    with writing(folder):
        if address_of(folder):
            storage.copy_folder(complete, folder, last=MANIFEST)
        elif folder.exists():
            _move_files(complete, folder)
        else:
            complete.rename(folder)


def _move_files(source: Path, target: Path) -> None:
    """Moves the files of a corpus, the manifest last. If that fails, they are moved back."""
    names = sorted((path.name for path in source.iterdir()), key=lambda name: name == MANIFEST)
    try:
        for name in names:
            (source / name).rename(target / name)
    except BaseException:
        for name in names:
            if (target / name).exists():
                (target / name).rename(source / name)
        raise


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Reports a failure to write in one line. ArrayRecord raises RuntimeError if the disk is full when it closes."""
    try:
        yield
    except UserError:  # may be an OSError too, of a file that is read
        raise
    except (OSError, RuntimeError) as error:
        message = f"cannot write the corpus {folder}: {error}; free some space or choose another folder"
        raise OSError(write_errno(error), message) from None
