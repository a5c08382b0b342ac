"""Entries of a folder that are replaced together: a killed writer leaves the old ones or the new ones.

A folder cannot be replaced as a whole: it may be a mount point, a link or the current folder, and may hold files of the
user. So the new entries are written to `.save.HOST.PID.ID.tmp` inside it and then moved, one after the other. The entry
that they replace goes to `.save.HOST.PID.ID.old`. As long as the `.tmp` folder has an entry left, the save is not
finished, and the old entries are those in `.old`, where there is one, and those in the folder. `.old/.added` lists
the new entries that replace nothing.
"""

import contextlib
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

_LOG = logging.getLogger("deberta_jax")
_NAME = re.compile(r"\.save\.(?P<host>[\w-]+)\.(?P<process>\d+)\.[0-9a-f]{12}\.(?P<kind>tmp|old)")
_ABANDONED = 24 * 3600  # seconds without a change after which a writer that cannot be seen is taken for dead
_MOVING = 5  # seconds that the moves of a save may take
_ADDED = ".added"
_active: set[Path] = set()  # what this process is writing


def new_name() -> str:
    """Returns a name for `Staging` that no other save has."""
    return f".save.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:12]}"


def _host() -> str:
    return re.sub(r"[^\w-]+", "-", socket.gethostname(), flags=re.ASCII)[:60] or "host"


class Staging:
    """New entries of a folder that are being written.

    Attributes:
      folder: The folder.
      path: Folder to write the new entries to.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Only names the paths; `create` makes the folders.

        Args:
          folder: The folder whose entries are to be replaced.
          name: A name from `new_name`, the same in all processes that write together.
        """
        self.folder = folder
        self.path = folder / f"{name}.tmp"
        self._old = folder / f"{name}.old"

    def create(self) -> None:
        """Creates the folders, after removing what killed saves have left in `folder`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        _active.update((self.path, self._old))
        self.path.mkdir()

    def commit(self, *, last: str, remove: Collection[str] = ()) -> None:
        """Moves the new entries into the folder. Other entries of the folder stay.

        If a move fails, all are undone.

        Args:
          last: The entry that is moved last, with which the save counts.
          remove: Entries of the folder that are removed if they exist.
        """
        names = sorted((entry.name for entry in self.path.iterdir()), key=lambda name: name == last)
        added = [name for name in names if not os.path.lexists(self.folder / name)]
        undo: list[tuple[Path, Path]] = []
        self._old.mkdir()
        try:
            (self._old / _ADDED).write_text("\n".join(added), encoding="utf-8")
            for name in (*remove, *names):
                if os.path.lexists(self.folder / name):
                    self._set_aside(name, replaced=name in names, undo=undo)
                if name in names:
                    os.replace(self.path / name, self.folder / name)
                    undo.append((self.folder / name, self.path / name))
        except BaseException:
            if any(self.path.iterdir()):  # otherwise the last one was moved
                for source, target in reversed(undo):
                    os.replace(source, target)
                shutil.rmtree(self._old)
            raise
        shutil.rmtree(self._old, ignore_errors=True)  # what cannot be deleted is left to the next save

    def _set_aside(self, name: str, *, replaced: bool, undo: list[tuple[Path, Path]]) -> None:
        """Moves an entry to `.old`; a file that will be replaced is linked, so that readers find it at all times."""
        source, target = self.folder / name, self._old / name
        if replaced and source.is_file() and not source.is_symlink():
            with contextlib.suppress(OSError):  # not every file system has hard links
                os.link(source, target)
                undo.append((target, source))
                return
        os.replace(source, target)
        undo.append((target, source))

    def discard(self) -> None:
        """Deletes the entries that were not moved, unless moves could not be undone."""
        _active.difference_update((self.path, self._old))
        if not self._old.exists():
            shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def replace_entries(folder: str | os.PathLike[str], *, last: str, remove: Collection[str] = ()) -> Iterator[Path]:
    """Yields a folder to write new entries of `folder` to, and moves them there if the block succeeds.

    If the block raises, `folder` stays as it was.

    Args:
      folder: The folder, which is created if necessary. It may be a link or a mount point.
      last: The entry that is moved last, which the block has to write.
      remove: Entries of the folder that are removed if they exist.

    Raises:
      OSError: The folder cannot be written.
    """
    staging = Staging(Path(folder).resolve(), new_name())
    try:
        staging.create()
        yield staging.path
        staging.commit(last=last, remove=remove)
    finally:
        staging.discard()


@contextlib.contextmanager
def create_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new folder beside `folder` to write to, and renames it to `folder` if the block succeeds.

    If `folder` exists by then, because another process was faster, it stays.

    Raises:
      OSError: The folder cannot be written.
    """
    folder = Path(folder)
    staging = Staging(folder.parent.resolve(), new_name())
    try:
        staging.create()
        yield staging.path
        try:
            staging.path.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        staging.discard()


def current_path(folder: Path, name: str) -> Path:
    """Returns the path of an entry of a folder: in the folder, or where a killed save has left the old one."""
    for old in _interrupted(folder):
        if os.path.lexists(old / name):
            return old / name
    return folder / name


def interrupted_save(folder: Path, names: Collection[str]) -> Path | None:
    """Returns the folder in which a save that was killed while it moved entries has left old ones of these names.

    A save that still runs is waited for, for some seconds.
    """
    end = time.monotonic() + _MOVING
    while True:
        found = next((old for old in _interrupted(folder) if any(os.path.lexists(old / name) for name in names)), None)
        if found is None or _is_leftover(found) or time.monotonic() > end:
            return found
        time.sleep(0.05)


def _interrupted(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    olds = [folder / name for name in names if (match := _NAME.fullmatch(name)) and match["kind"] == "old"]
    return sorted(old for old in olds if not _is_committed(old))


def _is_committed(old: Path) -> bool:
    """Returns whether all new entries of a save were moved, so that its old ones are not needed."""
    try:
        return not os.listdir(old.with_suffix(".tmp"))
    except OSError:
        return True


def leftovers(folder: Path) -> list[Path]:
    """Returns the folders that saves into `folder` have left there whose processes do not run any more."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _is_leftover(entry))


def _is_leftover(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if match is None or path in _active:
        return False
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > _ABANDONED:
            return True
    # This process's own number was that of an earlier process, too, if the path is not in `_active`.
    return match["host"] == _host() and not _is_running(int(match["process"]))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def remove_leftovers(folder: Path) -> None:
    """Removes what killed saves have left in a folder, and logs it. Old entries that they had set aside come back."""
    for path in leftovers(folder):
        if path.suffix == ".old" and not _is_committed(path):
            _take_back(folder, path)
            _LOG.warning("%s: took back what an interrupted save had set aside in %s", folder, path.name)
    for path in leftovers(folder):
        shutil.rmtree(path, ignore_errors=True)
        _LOG.warning("%s: removed %s, which an interrupted save had left", folder, path.name)


def _take_back(folder: Path, old: Path) -> None:
    """Undoes the moves of a killed save. It may be killed itself at any point."""
    added, new = old / _ADDED, old.with_suffix(".tmp")
    if added.is_file():
        for name in filter(None, added.read_text(encoding="utf-8").split("\n")):
            if not os.path.lexists(new / name) and os.path.lexists(folder / name):
                _delete(folder / name)
        added.unlink()
    for entry in old.iterdir():
        if os.path.lexists(folder / entry.name):
            _delete(folder / entry.name)
        os.replace(entry, folder / entry.name)
    old.rmdir()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
