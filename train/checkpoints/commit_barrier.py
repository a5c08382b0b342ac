"""The barrier at which Orbax's background threads meet."""

import itertools
import time

import jax

from ..hosts.processes import Coordinator
from .storage_faults import ElsewhereError


class CommitBarrier:
    """The barrier of Orbax's background threads, at which nobody waits for a process whose write failed.

    Orbax's threads meet when every process has written, when process 0 has committed, and then, whatever happened, at
    the two ends of a flag's change. A process that fails goes right to the last two: with an ordinary barrier the
    others wait for it at the first two until their time is over. Here all meet at whatever barrier comes next, say
    which one they mean, and who still waits for a write or a commit learns that there will be none.

    Called by one thread of a process at a time, in the same order on all; a thread that was given up after `timeout_ms`
    may come late.
    """

    _numbers = itertools.count()

    def __init__(self, client: Coordinator) -> None:
        self._client = client
        self._prefix = (
            f"deberta_jax/checkpointing/{next(self._numbers)}"  # the same on all: each opens the same folders
        )
        self._meetings = itertools.count()

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        skipped_by_failure = "async_write_complete" in key or "async_commit_complete" in key
        end = time.monotonic() + timeout_ms / 1000
        while True:
            left = max(int(1000 * (end - time.monotonic())), 1)
            try:
                together = self._meet(key, left)
            except jax.errors.JaxRuntimeError:
                # The others left this meeting when their time was over; they stand at the next.
                if skipped_by_failure or time.monotonic() >= end:
                    raise
                continue
            if together:
                return
            if skipped_by_failure:
                raise ElsewhereError("the save failed on another process")

    def _meet(self, key: str, timeout_ms: int) -> bool:
        number = next(self._meetings)
        place = f"{self._prefix}/{number}/"
        mine = f"{place}{jax.process_index()}"
        self._client.key_value_set(mine, key, allow_overwrite=True)
        self._client.wait_at_barrier(f"{self._prefix}/{number}", timeout_ms)
        together = len({said for _, said in self._client.key_value_dir_get(place)}) == 1
        if number:  # all have read the meeting before, as they have come to this one
            self._client.key_value_delete(f"{self._prefix}/{number - 1}/{jax.process_index()}")
        return together
