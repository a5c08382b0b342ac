"""The stacks of a process that hangs."""

import contextlib
import faulthandler


def say_stacks() -> None:
    """Prints the stacks of all threads to standard error, unless that is closed or its file is on a full disk."""
    with contextlib.suppress(OSError, ValueError):
        faulthandler.dump_traceback(all_threads=True)
