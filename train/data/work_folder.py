"""The hidden folder in which a corpus is made, beside or in the folder that it becomes.

A lock of the operating system shows whether the process that made it is alive. What a killed process left is continued
by the next one that does the same work, or else removed, if both are on the same machine.
"""

import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from deberta_jax.errors import UserError
from deberta_jax.stores import StoreError

try:
    import fcntl
except ImportError:  # Windows, where leftovers are named and never removed
    fcntl = None

_LOCK = "process.lock"
_DIGITS = 16  # of a digest, in the name of a folder


@contextlib.contextmanager
def stop_at_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end a command as Ctrl-C does: what it began is removed. The exit code is 128 + signal."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    for name, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(getattr(signal, name), _stop)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


class UnfinishedWorkError(UserError):
    """Work stopped for a reason outside of its inputs, so that the same command may continue it."""


@contextlib.contextmanager
def open_work_folder(parent: Path, name: str, digest: str) -> Iterator[Path]:
    """Yields the work folder of `name` in `parent`, new or left by a killed process that did the same.

    It is removed at the end, unless the block is interrupted or fails for a reason outside of the inputs.

    Args:
      digest: a digest of the work, in hexadecimal.

    Raises:
      UserError: another process is working in it.
      OSError: it cannot be created.
    """
    path = parent / work_folder_name(name, digest)
    path.mkdir(exist_ok=True)
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _in_use(parent / name, _owner(path)) from None
            except OSError:  # a file system without locks
                pass
        owner = {"host": socket.gethostname(), "process": os.getpid()}
        os.ftruncate(lock, 0)
        os.write(lock, json.dumps(owner).encode())
        try:
            yield path
        except UserError as error:
            if not isinstance(error, UnfinishedWorkError | StoreError):  # a store of the text may answer again
                shutil.rmtree(path)
            raise
        shutil.rmtree(path)
    finally:
        os.close(lock)


def work_folder_name(name: str, digest: str) -> str:
    """Returns the name of the work folder of `name`."""
    return f".{name}.{digest[:_DIGITS]}.tmp"


def find_leftovers(parent: Path, name: str) -> tuple[list[Path], list[Path]]:
    """Finds the work folders of processes that were killed.

    Returns:
      The folders that no process uses, and those of other machines and earlier versions, which may be in use.

    Raises:
      UserError: another process is making the same folder.
    """
    unused, unknown = [], []
    for found in glob.glob(f".{glob.escape(name)}.*.tmp", root_dir=parent, include_hidden=True):
        path = parent / found
        owner = _owner(path)
        if fcntl is None or owner.get("host") != socket.gethostname():
            unknown.append(path)
            continue
        with (path / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unused.append(path)
            except BlockingIOError:
                raise _in_use(parent / name, owner) from None
            except OSError:
                unknown.append(path)
    return unused, unknown


def _in_use(folder: Path, owner: dict[str, object]) -> UserError:
    return UserError(
        f"{folder} is being made by process {owner.get('process')} of this machine; wait for it, stop it, or choose "
        "another folder"
    )


def _owner(path: Path) -> dict[str, object]:
    try:
        owner = json.loads((path / _LOCK).read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
