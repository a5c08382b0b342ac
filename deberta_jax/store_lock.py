"""One run per address: stores have no locks, so the owner of a run rewrites a file in it every few seconds.

Nobody's clock counts: another process reads the file twice, and takes it over if it has not changed. If two processes
take it at the same moment, the one that wrote last has it, which the other one notices at its next turn.
"""

import json
import os
import secrets
import socket
import time
from typing import Any

from . import stores
from .errors import MissingFileError, UserError
from .terminal import say

FILE = "run.lock"
_TURN_SECONDS = 20.0
_SILENT_SECONDS = 70.0  # after which the owner counts as dead


class StoreLock:
    """The right to write to an address.

    Args:
      folder: the address of a run.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._file = folder, stores.join(folder, FILE)
        self._owner = {"host": socket.gethostname(), "process": os.getpid(), "id": secrets.token_hex(8)}
        self._turns, self._written = 0, 0.0

    def acquire(self) -> None:
        """Takes the right. If a process that may be alive has it, waits whether that one is silent.

        Raises:
          UserError: another process is writing there.
        """
        owner = self._read()
        if owner and not _is_dead(owner):
            say(f"{self._in_use(owner)}. Waiting {_SILENT_SECONDS:g} s, in case it has ended", error=True)
            time.sleep(_SILENT_SECONDS)
            if (again := self._read()) and again != owner:
                raise UserError(f"{self._in_use(again)}; wait for it, stop it, or give another --output")
        self._write()

    def keep(self) -> None:
        """Shows that this process is alive; to be called often.

        Raises:
          UserError: another process has taken the right.
        """
        if time.monotonic() - self._written < _TURN_SECONDS:
            return
        owner = self._read()
        if owner and owner.get("id") != self._owner["id"]:
            raise UserError(f"{self._in_use(owner)}, which began after this one; this one no longer writes there")
        self._write()

    def release(self) -> None:
        """Gives the right back, if this process has it."""
        if self._read().get("id") == self._owner["id"]:
            stores.remove(self._file)

    def _write(self) -> None:
        self._turns += 1
        stores.write(self._file, json.dumps(self._owner | {"turn": self._turns}).encode())
        self._written = time.monotonic()

    def _read(self) -> dict[str, Any]:
        try:
            owner = json.loads(stores.read(self._file))
        except (MissingFileError, json.JSONDecodeError, UnicodeDecodeError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _in_use(self, owner: dict[str, Any]) -> str:
        return f"{self._folder} is used by process {owner.get('process')} on {owner.get('host')}"


def _is_dead(owner: dict[str, Any]) -> bool:
    """Returns whether the owner was a process of this machine that has ended."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("process"), int):
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
