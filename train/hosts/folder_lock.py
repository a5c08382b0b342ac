"""One run per output folder: a lock file names the process that uses the folder.

A lock of the operating system (`flock`) shows a live process on the same machine, and is gone when that process dies.
Other machines may not see it, for instance on a mounted bucket, so the owner also touches the file every few seconds.
A file that is no longer touched is taken over.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from deberta_jax.errors import UserError
from deberta_jax.terminal import say

try:
    import fcntl
except ImportError:  # Windows, where only the age of the file counts
    fcntl = None

FILE = "run.lock"
_TOUCH_SECONDS = 10.0
_STALE_SECONDS = 60.0


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the folder of a run, which is created if necessary, inside the context.

    If another machine used the folder less than a minute ago, it waits until that machine is silent.

    Raises:
      UserError: another process uses the folder; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    lock = _acquire(path)
    stopped = threading.Event()
    try:
        owner = {"host": socket.gethostname(), "process": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.truncate(lock, 0)
        os.pwrite(lock, (json.dumps(owner) + "\n").encode(), 0)
        threading.Thread(target=_keep_fresh, args=(path, stopped), daemon=True).start()
        yield
    finally:
        stopped.set()
        with contextlib.suppress(OSError):  # on a full or lost disk the file stays, and is stale in a minute
            path.unlink(missing_ok=True)
        os.close(lock)


def _acquire(path: Path) -> int:
    """Returns the descriptor of the locked file."""
    waited = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(_in_use(path)) from None
            except OSError:  # a file system without locks: only the age of the file counts
                pass
            if not _is_current(descriptor, path):
                continue  # its owner has just removed it
            silence = _silence(path)
            if silence is None or silence > _STALE_SECONDS:
                lock, descriptor = descriptor, -1
                return lock
            if waited:
                raise UserError(_in_use(path))
            say(f"{_in_use(path)}. Waiting {_STALE_SECONDS:g} s, in case it has ended")
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        time.sleep(_STALE_SECONDS)
        waited = True


def _is_current(descriptor: int, path: Path) -> bool:
    """Returns whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _silence(path: Path) -> float | None:
    """Returns the seconds since another machine touched the file; None if it has no owner or one of this machine.

    An owner of this machine is dead, because its lock is free.
    """
    owner = _owner(path)
    if not owner or (fcntl is not None and owner["host"] == socket.gethostname()):
        return None
    return time.time() - path.stat().st_mtime


def _owner(path: Path) -> dict[str, object]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) and "host" in owner else {}


def _in_use(path: Path) -> str:
    owner = {"process": "?", "host": "this machine", "started": "?", **_owner(path)}
    return (
        f"{path.parent} is in use by process {owner['process']} on {owner['host']}, started {owner['started']}; wait "
        "for that run, stop it, or give another --output"
    )


def _keep_fresh(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError):  # the disk may come back
            os.utime(path)
