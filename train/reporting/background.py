"""Writes logs in threads, so that a full disk or a file system that hangs never delays a training step."""

import collections
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from deberta_jax.errors import one_line

_MOST_WAITING = 100_000  # entries in memory while they cannot be written
_LONGEST_PAUSE = 30.0  # seconds between two tries
_CLOSING_PAUSE = 0.5  # the same while `close` waits
_SECONDS_TO_CLOSE = 10.0

Entry = TypeVar("Entry")


class LogThread(Generic[Entry]):
    """Writes the entries of one log in order, in a daemon thread.

    Args:
      name: the log, for messages, such as "metrics.jsonl".
      write: writes one entry. It may raise, and it may never return.
      retries: whether an entry that could not be written is tried again after 1, 2, 4, ... and then every 30 seconds.
        Otherwise the first error ends the log, and everything after it is dropped.
      say: receives messages; it is called from the thread.
      finish: called by the thread after the last entry or the first error (default: nothing). It may raise.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Entry], None],
        *,
        retries: bool,
        say: Callable[[str], None],
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._write, self._retries, self._say, self._finish = name, write, retries, say, finish
        self._waiting: collections.deque[Entry] = collections.deque()
        self._changed = threading.Condition()
        self._closing = self._ended = False
        self._dropped = 0
        self._pause = 0.0  # seconds before the next try; positive since the last error
        self._thread = threading.Thread(target=self._run, name=f"log {name}", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Adds an entry and returns at once. The entry is dropped if the log has ended or too many are waiting."""
        with self._changed:
            if self._ended or len(self._waiting) >= _MOST_WAITING:
                self._dropped += 1
            else:
                self._waiting.append(entry)
                self._changed.notify_all()

    def flush(self, *, seconds: float = 10.0) -> None:
        """Waits until all entries are written, or the log has ended, at most for `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout=seconds)

    def close(self) -> None:
        """Waits until all entries are written, at most for 10 seconds, and reports how many were lost."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=_SECONDS_TO_CLOSE)
        if lost := self._dropped + len(self._waiting):
            self._say(f"{self._name}: {lost} entries could not be written")

    def _run(self) -> None:
        self._write_entries()
        try:
            self._finish()
        except Exception as error:
            if not self._ended:  # otherwise the first error was reported
                self._say(f"{self._name} was not closed: {one_line(error)}")

    def _write_entries(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                entry = self._waiting[0]
            try:
                self._write(entry)
            except Exception as error:
                if not self._retries:
                    self._end(error)
                    return
                self._wait_for_next_try(error)
                continue
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()
            if self._pause:
                self._pause = 0.0
                self._say(f"{self._name} is written again")

    def _end(self, error: Exception) -> None:
        with self._changed:
            self._ended = True
            self._dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        self._say(f"{self._name} is no longer written: {one_line(error)}. Training goes on")

    def _wait_for_next_try(self, error: Exception) -> None:
        if not self._pause:
            self._say(f"{self._name} cannot be written and is tried again: {one_line(error)}. Training goes on")
        self._pause = min(2 * self._pause or 1.0, _LONGEST_PAUSE)
        with self._changed:
            if not self._changed.wait_for(lambda: self._closing, timeout=self._pause):
                return
        threading.Event().wait(_CLOSING_PAUSE)


class LineFile:
    """Appends lines to a file. A line that was written in part is ended before the next one, so that readers skip it.

    The file is created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._torn = path, False

    def write(self, line: str) -> None:
        """Appends a line.

        Raises:
          OSError: it could not be written, or only in part.
        """
        data = ("\n" * self._torn + line + "\n").encode()
        self._torn = True
        with open(self._path, "ab", buffering=0) as lines:  # nothing stays in a buffer that a later close would write
            while data:
                data = data[lines.write(data) :]
        self._torn = False
