"""Waits in tests for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Returns as soon as the condition holds. Raises TimeoutError after so long that something must be broken."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not true after {seconds:g} s: {condition}")
        time.sleep(0.01)
