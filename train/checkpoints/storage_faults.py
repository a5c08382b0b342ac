"""Storage that fails, as several processes see it: what an error means, agreeing on it, and retrying.

Functions marked "Collective" are called by all processes at the same point; otherwise processes wait for each other
without limit.
"""

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import jax

from deberta_jax.errors import DISK_FULL, UserError, one_line

from ..hosts.exit_codes import RestartError
from ..hosts.processes import gather_json, host_name

# tensorstore raises ValueError whose message contains that of the operating system or the storage service.
_DENIED = re.compile(r"Permission denied|Operation not permitted|PERMISSION_DENIED|UNAUTHENTICATED")
_OUTAGE = re.compile(
    r"Input/output error|Stale file handle|Transport endpoint|Connection (?:timed out|refused|reset|aborted)|"
    r"Remote I/O error|No route to host|Network is (?:down|unreachable)|UNAVAILABLE|DEADLINE_EXCEEDED|No such device",
    re.IGNORECASE,
)
_LONGEST_PAUSE = 30.0
_LONGEST_LINE = 200

Result = TypeVar("Result")


class CheckpointError(UserError):
    """A checkpoint cannot be written or used. The message is one line that says what to do."""


class StorageDownError(CheckpointError, RestartError):
    """Storage stayed unavailable past the retry limit. It may be available again at the next start."""


class PeerFailedError(OSError):
    """This process gave up a save because the save failed on another process."""


class StorageStuckError(OSError):
    """Storage has not answered for so long that the thread which waits for it was given up."""


FaultKind = Literal["outage", "full", "denied", "damage", "mistake"]


@dataclass(frozen=True)
class Fault:
    """What went wrong, as all processes agree.

    Attributes:
      kind: what to do about it. Retrying may help after an "outage", and when the disk is "full", since somebody may
        free some space. It does not help if access was "denied" or after a "mistake", nor against "damage" of what is
        stored, where only another step can be used.
      text: one line, which names the host if there are several.
    """

    kind: FaultKind
    text: str

    @property
    def final(self) -> bool:
        """Whether retrying cannot help."""
        return self.kind not in ("outage", "full")

    @property
    def error(self) -> type[CheckpointError]:
        """The class of the exception to raise."""
        return CheckpointError if self.final else StorageDownError


def write_fault(error: Exception) -> FaultKind:
    """Returns what a failed write means. An unknown error of the storage counts as an outage."""
    if isinstance(error, StorageStuckError | FileExistsError | NotADirectoryError):
        return "mistake"
    if isinstance(error, PermissionError) or _DENIED.search(str(error)):
        return "denied"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or DISK_FULL.search(str(error)):
        return "full"
    return "outage" if isinstance(error, OSError | ValueError | jax.errors.JaxRuntimeError) else "mistake"


def read_fault(error: Exception) -> FaultKind:
    """Returns what a failed read means. An unknown error counts as damage, so that an older step is tried."""
    if isinstance(error, PermissionError) or _DENIED.search(str(error)):
        return "denied"
    return "outage" if isinstance(error, TimeoutError | ConnectionError) or _OUTAGE.search(str(error)) else "damage"


class Outcome(NamedTuple, Generic[Result]):
    """The result of a call, or the error that it raised."""

    result: Result | None
    error: Exception | None


def outcome_of(call: Callable[[], Result], caught: tuple[type[Exception], ...] = (Exception,)) -> Outcome[Result]:
    """Calls a function, and returns its result or the error that it raised, if that is one of `caught`."""
    try:
        return Outcome(call(), None)
    except caught as error:
        return Outcome(None, error)


def agree_on_fault(error: Exception | None, classify: Callable[[Exception], FaultKind]) -> Fault | None:
    """Returns the worst fault of all processes, or None if no process had an error. Collective.

    A process that failed by itself takes precedence over one that gave up because of it, then a final fault over one
    that may pass.

    Args:
      error: the error of this process.
      classify: `write_fault` or `read_fault`.
    """
    mine = None
    if error is not None:
        host = f"on {host_name()}: " if jax.process_count() > 1 else ""
        kind = classify(error)
        reason = "the disk is full" if kind == "full" else storage_message(error)
        mine = [isinstance(error, PeerFailedError), kind, host + reason]
    faults = [fault for fault in gather_json(mine) if fault is not None]
    if not faults:
        return None
    _, kind, text = min(faults, key=lambda fault: (fault[0], not Fault(fault[1], "").final))
    return Fault(kind, text)


class Retries:
    """Retries after 1, 2, 4, ... and then every 30 seconds, for `patience` seconds from the first failure.

    Once `stop_requested` returns True, there is one more retry, at once. It is called on all processes alike.
    """

    def __init__(self, patience: float, *, stop_requested: Callable[[], bool] = lambda: False) -> None:
        self.patience, self._stop_requested = patience, stop_requested
        self._deadline: float | None = None
        self._pause = 1.0

    def retry_after(
        self, fault: Fault | None, call: Callable[[], Fault | None], *, log: Callable[[str], None]
    ) -> Fault | None:
        """Repeats `call` until it returns no fault, a final fault, or time is over. Collective.

        Args:
          fault: the fault of a first call, which has been made; None returns at once.
          log: receives one message when the first retry of this object begins.

        Returns:
          The last fault; None if a call succeeded.
        """
        while fault is not None and not fault.final and self.patience > 0:
            if self._deadline is None:
                self._deadline = time.monotonic() + self.patience
                log(f"{fault.text}; trying again for up to {self.patience:g} s")
            # Clocks differ, and all processes have to end after the same call: process 0 decides.
            remaining = gather_json(self._deadline - time.monotonic())[0]
            if remaining <= 0:
                break
            stopping = self._sleep(min(self._pause, remaining))
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            fault = call()
            if stopping:
                break
        return fault

    def _sleep(self, seconds: float) -> bool:
        """Sleeps, and returns at once with True if a stop is requested. Collective."""
        while not (stopping := self._stop_requested()) and seconds > 0:
            time.sleep(min(seconds, 1.0))
            seconds -= 1.0
        return stopping


def storage_message(error: Exception) -> str:
    """Returns the message of an error as one line, without the specification that tensorstore appends.

    A long message keeps its beginning and its end, where the cause is.
    """
    text = re.split(r" \[(?:tensorstore_spec|source locations)", one_line(error))[0]
    return text if len(text) <= _LONGEST_LINE else f"{text[:60]} ... {text[-135:]}"
