"""The barrier at which Orbax's background threads meet while they commit a checkpoint."""

import itertools
import time

import jax

from ..hosts.processes import CoordinationClient
from .storage_faults import PeerFailedError


class CommitBarrier:
    """A barrier at which no process waits for one whose write failed.

    Every process saves in a background thread. With Orbax's own barrier the threads meet four times:

    1. `async_write_complete`: every process has written its part.
    2. `async_commit_complete`: process 0 has committed the step (renamed its folder).
    3. and 4.: before and after the flag "save in progress" is cleared. Orbax clears it in a `finally`, so every thread
       comes to these two, whether its write failed or not. (The main threads meet there when the flag is set.)

    A thread whose write failed skips 1 and 2, or 2, and goes to 3. With Orbax's barrier the others would wait for it at
    1 or 2 until the time-out, minutes later. With this one:

    * Every call is a *meeting* of all processes, numbered in the order of the calls. Each process writes into the
      key-value store which barrier (`key`) it means, then waits until all have come to the meeting of this number.
    * If all mean the same barrier, they pass it.
    * If they do not, some process has failed and is at barrier 3 already. A thread at 1 or 2 raises PeerFailedError,
      and so goes to 3 as well. The thread at 3 waits there again, in the next meeting.
    * If a process dies or its storage hangs, the meeting times out. A thread at 1 or 2 raises the error, and Orbax
      reports it. A thread at 3 or 4 tries the next meeting until its own time-out, because the others may have given up
      the meeting that it waited in.

    A process calls it from one thread at a time, in the same order as all others. A thread that was given up after its
    time-out may call it late.
    """

    _instances = itertools.count()

    def __init__(self, client: CoordinationClient) -> None:
        self._client = client
        # Equal on all processes, because all open the same checkpointers in the same order.
        self._prefix = f"deberta_jax/checkpointing/{next(self._instances)}"
        self._meetings = itertools.count()

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes have come to the barrier `key`, as Orbax's `barrier_sync_fn` does.

        Raises:
          PeerFailedError: another process has failed and will not come.
          JaxRuntimeError: some process did not come in time.
        """
        skipped_on_failure = "async_write_complete" in key or "async_commit_complete" in key
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            remaining_ms = max(int(1000 * (deadline - time.monotonic())), 1)
            try:
                same_barrier = self._meet(key, remaining_ms)
            except jax.errors.JaxRuntimeError:
                if skipped_on_failure or time.monotonic() >= deadline:
                    raise
                continue
            if same_barrier:
                return
            if skipped_on_failure:
                raise PeerFailedError("the save failed on another process")

    def _meet(self, key: str, timeout_ms: int) -> bool:
        """Waits for all processes, and returns whether all of them mean the barrier `key`."""
        number = next(self._meetings)
        folder = f"{self._prefix}/{number}/"
        self._client.key_value_set(f"{folder}{jax.process_index()}", key, allow_overwrite=True)
        self._client.wait_at_barrier(f"{self._prefix}/{number}", timeout_ms)
        keys = {value for _, value in self._client.key_value_dir_get(folder)}
        if number:
            # Everyone has come to this meeting, so everyone has read the entries of the one before.
            self._client.key_value_delete(f"{self._prefix}/{number - 1}/{jax.process_index()}")
        return len(keys) == 1
