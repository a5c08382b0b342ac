"""Storage that fails, as several processes see it: what an error means, agreeing on it, waiting for it to pass.

Functions marked "collective" are called by all processes at the same point, or they wait for each other without limit.
"""

import errno
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax

from deberta_jax.errors import UserError

from ..hosts.exit_codes import RestartError
from ..hosts.processes import gather, host_name

# tensorstore raises ValueError with the system's or the service's words inside.
_DENIED = re.compile(r"Permission denied|Operation not permitted|PERMISSION_DENIED|UNAUTHENTICATED")
_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_OUTAGE = re.compile(
    r"Input/output error|Stale file handle|Transport endpoint|Connection (?:timed out|refused|reset|aborted)|"
    r"Remote I/O error|No route to host|Network is (?:down|unreachable)|UNAVAILABLE|DEADLINE_EXCEEDED|No such device",
    re.IGNORECASE,
)
_LONGEST_PAUSE = 30.0

Result = TypeVar("Result")


class CheckpointError(UserError):
    """A checkpoint that cannot be written or used; the message is one line that says what to do."""


class StorageDownError(CheckpointError, RestartError):
    """Storage that failed for longer than anyone was ready to wait; it may be back at the next start."""


_FROM_ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return _FROM_ORBAX not in record.pathname and _FROM_ORBAX not in record.getMessage()


def _skip_late_reads(otherwise: Callable[[Any], object], unraisable: Any) -> None:
    late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    if not late:
        otherwise(unraisable)


# Orbax logs every failure with its traceback through absl before raising it, and when one array cannot be read it
# abandons the reads of the others, which complain to asyncio and to a closed event loop. Here a failure is reported
# once, in one line, with the original chained. Filters, as grain and tensorflow-datasets log through absl too.
logging.getLogger("absl").addFilter(_not_from_orbax)
logging.getLogger("asyncio").addFilter(_not_from_orbax)
sys.unraisablehook = functools.partial(_skip_late_reads, sys.unraisablehook)


class ElsewhereError(OSError):
    """The save was given up on this process because it failed on another."""


class StuckError(OSError):
    """The storage has not answered for so long that the thread that waits for it is given up."""


Kind = Literal["passing", "full", "denied", "damage", "mistake"]


@dataclass(frozen=True)
class Fault:
    """What all processes agree went wrong. `text` is one line and names the host where there are several.

    `kind`: passing (an outage: try again), full (try again: a person may free some space), denied and mistake
    (trying again does not help), damage (of what is stored: trying again does not help, another step may).
    """

    kind: Kind
    text: str

    @property
    def final(self) -> bool:
        return self.kind not in ("passing", "full")

    @property
    def error(self) -> type[CheckpointError]:
        """What to raise for it."""
        return CheckpointError if self.final else StorageDownError


def write_fault(error: Exception) -> Kind:
    """What a failed write means. Whatever the storage says counts as an outage, unless it says why it never will."""
    if isinstance(error, StuckError | FileExistsError | NotADirectoryError):
        return "mistake"
    if isinstance(error, PermissionError) or _DENIED.search(str(error)):
        return "denied"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(error)):
        return "full"
    return "passing" if isinstance(error, OSError | ValueError | jax.errors.JaxRuntimeError) else "mistake"


def read_fault(error: Exception) -> Kind:
    """What a failed read means. It counts as damage, unless the error is one of storage that does not answer."""
    if isinstance(error, PermissionError) or _DENIED.search(str(error)):
        return "denied"
    return "passing" if isinstance(error, TimeoutError | ConnectionError) or _OUTAGE.search(str(error)) else "damage"


def attempt(
    do: Callable[[], Result], caught: tuple[type[Exception], ...] = (Exception,)
) -> tuple[Result | None, Exception | None]:
    """The result of `do`, or its error if it is one of `caught`."""
    try:
        return do(), None
    except caught as error:
        return None, error


def agree(error: Exception | None, judge: Callable[[Exception], Kind]) -> Fault | None:
    """The worst of what went wrong on any process, or None where nothing did. Collective."""
    mine = None
    if error is not None:
        host = f"on {host_name()}: " if jax.process_count() > 1 else ""
        kind = judge(error)
        reason = "the disk is full" if kind == "full" else one_line(error)
        mine = [isinstance(error, ElsewhereError), kind, host + reason]
    faults = [fault for fault in gather(mine) if fault is not None]
    if not faults:
        return None
    # A reason before its consequence, and what is final first.
    _, kind, text = min(faults, key=lambda fault: (fault[0], not Fault(fault[1], "").final))
    return Fault(kind, text)


class Retries:
    """Tries again after 1, 2, 4, ... and then 30 seconds, for `patience` seconds from the first failure."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._end: float | None = None
        self._pause = 1.0

    def until_it_works(
        self, fault: Fault | None, again: Callable[[], Fault | None], *, log: Callable[[str], None]
    ) -> Fault | None:
        """Calls `again` after each fault until there is none; returns the last fault when time is over. Collective.

        `log` is told of the first failure since this object was made.
        """
        while fault is not None and not fault.final and self.patience > 0:
            if self._end is None:
                self._end = time.monotonic() + self.patience
                log(f"{fault.text}; trying again for up to {self.patience:g} s")
            left = gather(self._end - time.monotonic())[0]  # clocks differ: process 0 decides
            if left <= 0:
                break
            time.sleep(min(self._pause, left))
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            fault = again()
        return fault


def one_line(error: Exception) -> str:
    """The message without tensorstore's specification; of a long one both ends, as the cause stands last."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.split(r" \[(?:tensorstore_spec|source locations)", text)[0]
    return text if len(text) <= 200 else f"{text[:60]} ... {text[-135:]}"
