"""The folder of a new corpus: it gets its name when it is complete, and what killed processes left is removed."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from deberta_jax.errors import UserError, write_errno

from .corpus import MANIFEST
from .work_folder import create_work_folder, find_leftovers

_LOG = logging.getLogger("deberta_jax")


def clear_leftovers(folder: Path) -> None:
    """Removes what killed processes left of making the folder, and logs it.

    Raises:
      UserError: if another process is making the folder.
    """
    unused, unknown = find_leftovers(folder if folder.exists() else folder.parent, folder.resolve().name)
    for path in unknown:
        _LOG.warning("%s is left of another run; delete it, unless that run is still making this corpus", path)
    for path in unused:
        manifest = path / "corpus" / MANIFEST
        if manifest.exists() and folder.exists() and not (folder / MANIFEST).exists():
            for name in _listed_files(manifest):
                (folder / name).unlink(missing_ok=True)
        shutil.rmtree(path)
        _LOG.warning("removed %s, which a killed run had left", path)


def _listed_files(manifest: Path) -> list[str]:
    """Returns the files of a manifest, none if it was being written, because then no file has been moved."""
    try:
        fields = json.loads(manifest.read_bytes())
        names = [str(file["name"]) for split in ("train", "held_out") for file in fields[split]["files"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [name for name in names if Path(name).name == name]  # never a file of another folder


def check_free(folder: Path) -> None:
    """Raises UserError if an existing folder cannot receive a corpus.

    It may hold what a killed process has left there, and lost+found, which is in every new file system.
    """
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


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields the path of a folder to create, and moves it to `folder` if the block succeeds.

    An existing folder may be a mount point, a link or the current folder, none of which can be replaced. So the files
    are moved into it, the manifest last.
    """
    exists = folder.exists()
    parent = folder if exists else folder.parent
    with contextlib.ExitStack() as stack:
        with writing(folder):
            parent.mkdir(parents=True, exist_ok=True)
            complete = stack.enter_context(create_work_folder(parent, folder.resolve().name)) / "corpus"
        yield complete
        with writing(folder):
            if exists:
                _move_files(complete, folder)
            else:
                complete.rename(folder)


def _move_files(source: Path, target: Path) -> None:
    """Moves the files of a corpus, the manifest last. If that fails, none of them is left in either folder."""
    names = sorted((path.name for path in source.iterdir()), key=lambda name: name == MANIFEST)
    try:
        for name in names:
            (source / name).rename(target / name)
    except BaseException:
        for name in reversed(names):
            (target / name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Reports a failure to write in one line. ArrayRecord raises RuntimeError if the disk is full when it closes."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        message = f"cannot write the corpus {folder}: {error}; free some space or choose another folder"
        raise OSError(write_errno(error), message) from None
