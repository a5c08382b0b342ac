"""When the process of a command started, so that its imports count in the time to the first step."""

import os
import time
from pathlib import Path

_noted: list[float] = []  # at most one


def note_process_start() -> None:
    """Keeps when this process started, for the first call of `take_process_start`.

    Where the system does not tell (it does on Linux), that is now.
    """
    now = time.monotonic()
    try:
        # The name of the program, in parentheses, may have spaces; the start is field 22, in ticks since the boot.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = 0.0
    _noted[:] = [now - max(0.0, age)]


def take_process_start() -> float | None:
    """Returns what `note_process_start` kept (`time.monotonic`); None if it was not called, or from the second call on.

    A second run in the same process did not wait for the imports.
    """
    return _noted.pop() if _noted else None
