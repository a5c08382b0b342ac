"""Suppresses what Orbax logs about failures that this library reports itself.

Orbax logs every failure with its traceback, through absl, before it raises the exception. When one array cannot be
read, Orbax abandons the reads of the others, which then complain to asyncio and to a closed event loop. This library
reports a failure once, in one line, with the original exception chained.
"""

import contextlib
import functools
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_ORBAX_PATH = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"
# Filters, not levels of the loggers: grain and tensorflow-datasets log through absl as well.
_LOGGERS = ("absl", "asyncio")
_LATE_SECONDS = 0.5


class OrbaxMessages:
    """Suppresses messages from the first `suppress` to the matching last `restore`: several checkpointers may be open.

    Both methods are thread-safe. While nothing is suppressed, the loggers and `sys.unraisablehook` are as before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._suppressed_any = False
        self._hooks: tuple[Callable[[Any], object], Callable[[Any], object]] | None = None  # before, and installed

    def suppress(self) -> None:
        """Installs the filters, unless they are installed already."""
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._suppressed_any = False
            before = sys.unraisablehook
            self._hooks = before, functools.partial(_skip_abandoned_reads, before)
            sys.unraisablehook = self._hooks[1]
            for name in _LOGGERS:
                logging.getLogger(name).addFilter(self._filter)

    def restore(self) -> None:
        """Removes the filters, if every other user has called this as well."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if self._suppressed_any:
                gc.collect()  # abandoned reads complain when they are collected, so the filters have to outlive them
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(self._filter)
            assert self._hooks is not None
            before, installed = self._hooks
            if sys.unraisablehook is installed:  # else other code has replaced the hook since
                sys.unraisablehook = before

    @contextlib.contextmanager
    def suppressed(self) -> Iterator[None]:
        """Suppresses messages in a block, and for a moment after it has failed."""
        self.suppress()
        try:
            yield
        except BaseException:
            time.sleep(_LATE_SECONDS)  # the reads and writes that Orbax has abandoned end in other threads
            raise
        finally:
            self.restore()

    def _filter(self, record: logging.LogRecord) -> bool:
        from_orbax = _ORBAX_PATH in record.pathname or _ORBAX_PATH in record.getMessage()
        self._suppressed_any |= from_orbax
        return not from_orbax


def _skip_abandoned_reads(otherwise: Callable[[Any], object], unraisable: Any) -> None:
    """A `sys.unraisablehook`: ignores the complaint of an abandoned read, and passes everything else to `otherwise`."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        otherwise(unraisable)


ORBAX_MESSAGES = OrbaxMessages()
