"""The hidden folder in which a corpus is made, beside or in the folder that it becomes.

A lock of the operating system shows whether the process that made it is alive. What a killed process left can be
removed by the next one, if both are on the same machine.
"""

import contextlib
import glob
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from deberta_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where leftovers are named and never removed
    fcntl = None

_LOCK = "process.lock"


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


@contextlib.contextmanager
def create_work_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yields a new folder in `parent`, which is removed at the end, whatever happens.

    Raises:
      OSError: it cannot be created.
    """
    temporary = tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=parent)
    with temporary as path:
        lock = os.open(Path(path, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner = {"host": socket.gethostname(), "process": os.getpid()}
            os.write(lock, json.dumps(owner).encode())
            yield Path(path)
        finally:
            os.close(lock)


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
                raise UserError(
                    f"{parent / name} is being made by process {owner.get('process')} of this machine; wait for it, "
                    "stop it, or choose another folder"
                ) from None
            except OSError:
                unknown.append(path)
    return unused, unknown


def _owner(path: Path) -> dict[str, object]:
    try:
        owner = json.loads((path / _LOCK).read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
