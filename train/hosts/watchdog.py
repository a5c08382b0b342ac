"""Ends a process that waits for a host which will not answer, and names that host.

A collective waits for its slowest member without limit. JAX's own heartbeats come from a C++ thread: they reveal a
process that is gone, but not one whose Python hangs in a data loader or a file system, and they name no host. So every
process runs a Watchdog, two threads beside the main one:

1. The *publishing* thread writes a report of what the main thread is doing (`Report`) into the key-value store of JAX's
   coordination service, every `period` seconds, and reads the reports of all others. It is the only thread that talks
   to the service, so a service that hangs delays only this thread.
2. The *judging* thread looks once a second at what has been read (`Progress.failure`). It ends this process with exit
   code 42 (start the run again) when

   * a process has published nothing for `dead_after` seconds: it was killed, or its machine died or froze;
   * the coordination service, which process 0 runs, has not answered for `dead_after` seconds;
   * this process and the processes that it waits for have all been in one phase for too long: `stall_after` seconds, or
     ten times the fastest step where that is more, for a step or the wait for a batch, and `slow_after` for everything
     else (compiling, restoring, evaluating, saving). The processes that are furthest behind are blamed.

No process waits for another one's watchdog, and each comes to its own verdict. The verdicts agree because all read the
same reports. What follows when a process ends:

1. It prints what every process was doing, and its own stacks.
2. It publishes its failure, so that the others end with the same exit code and the true reason. Without that they
   would report this process as lost.
3. Process 0 then waits for some periods before it exits, because it runs the service from which the others read the
   failure, and because JAX's client aborts a process, from C++, as soon as process 0 is gone. No Python code can then
   print anything; that is what DeathNotice is for.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable

from deberta_jax.terminal import say

from ..configs import HostsConfig
from .exit_codes import RESTART
from .phases import PhaseTimer
from .processes import CoordinationClient
from .progress import Progress, Report
from .stacks import say_stacks

_REPORTS, _FAILURES = "deberta_jax/alive/", "deberta_jax/failed/"


class Watchdog:
    """Publishes what this process does and judges all processes, in threads of its own, from `start` to `stop`.

    Args:
      client: the client of JAX's coordination service.
      index: the index of this process.
      names: the name of every process, for messages.
      phases: what this process is doing.
      terminate: ends the process with the exit code that it receives, after the reason was printed.

    Attributes:
      period: seconds between two reports.
    """

    def __init__(
        self,
        client: CoordinationClient,
        *,
        index: int,
        names: list[str],
        phases: PhaseTimer,
        config: HostsConfig,
        terminate: Callable[[int], None] = os._exit,
    ) -> None:
        self._client, self._index, self._names = client, index, names
        self._phases, self._terminate = phases, terminate
        # At least five reports before a process counts as dead, but no more than the service can answer.
        self.period = max(min(2.0, config.dead_after / 5), len(names) / 32)
        self._progress = Progress(index, names, config)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._publish_reports, self._judge)]

    def start(self) -> None:
        """Starts the two threads."""
        self._progress.start(time.monotonic())
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops judging, and announces to the others that this process ends as it should."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=2 * self.period)
        with contextlib.suppress(Exception):  # process 0, which runs the service, may have ended already
            self._exchange_reports(self._own_report().as_finished())

    def publish_failure(self, code: int, message: str) -> None:
        """Stops judging, and announces to the others that this process ends.

        Args:
          code: the exit code of this process, and of the others.
          message: the reason, such as "failed: ...".
        """
        self._stopped.set()
        value = json.dumps({"code": code, "message": message})

        def publish() -> None:
            with contextlib.suppress(Exception):
                self._client.key_value_set(f"{_FAILURES}{self._index}", value, allow_overwrite=True)

        # In a thread with a time-out, since it may be the service that fails or does not answer.
        publishing = threading.Thread(target=publish, daemon=True)
        publishing.start()
        publishing.join(timeout=self.period)

    # ---------------------------------------------------------------- the two threads

    def _publish_reports(self) -> None:
        beat = 0
        while not self._stopped.is_set():
            beat += 1
            try:
                self._exchange_reports(self._own_report(beat))
            except Exception:  # the service is gone or hangs, which _judge notices when it lasts
                time.sleep(self.period / 4)
            self._stopped.wait(self.period)

    def _judge(self) -> None:
        while not self._stopped.wait(min(1.0, self.period)):
            now = time.monotonic()
            mine = self._own_report()
            if (reason := self._progress.failure(mine, now)) is not None:
                self._abort_run(reason)

    # ---------------------------------------------------------------- what they do

    def _own_report(self, beat: int = 0) -> Report:
        """Returns what this process is doing now. `beat` numbers published reports; 0 marks one that is only judged."""
        phases = self._phases
        return Report(
            beat=beat,
            step=phases.step,
            phase=phases.phase,
            seconds=round(time.monotonic() - phases.since, 1),
            where=phases.innermost_functions(),
        )

    def _exchange_reports(self, mine: Report) -> None:
        """Publishes the report of this process, reads those of all, and exits if another process has failed."""
        self._client.key_value_set(f"{_REPORTS}{self._index}", mine.to_json(), allow_overwrite=True)
        reports = {_process(key): Report.from_json(value) for key, value in self._client.key_value_dir_get(_REPORTS)}
        now = time.monotonic()
        failures = {_process(key): json.loads(value) for key, value in self._client.key_value_dir_get(_FAILURES)}
        self._progress.record(reports, now)
        for process, failure in failures.items():
            if process != self._index and not self._stopped.is_set():
                self._exit(failure["code"], f"{self._names[process]} {failure['message']}")

    def _abort_run(self, reason: str) -> None:
        """Prints what all processes were doing and ends this one."""
        lines = ["What every process was doing:", *(f"  {line}" for line in self._progress.describe(time.monotonic()))]
        say("\n".join(lines), error=True)
        say_stacks()
        self.publish_failure(RESTART, f"gives up: {reason}")
        self._exit(RESTART, reason)

    def _exit(self, code: int, reason: str) -> None:
        self._stopped.set()  # the others fall silent while this process lingers, which must not be judged again
        say(f"{self._names[self._index]}: {reason}. Exit code {code}", error=True)
        if self._index == 0:  # the others have to read the failure from the service before JAX aborts them
            time.sleep(5 * self.period)
        self._terminate(code)


def _process(key: str) -> int:
    """Returns the index of the process that a key of the store belongs to."""
    return int(key.rpartition("/")[2])
