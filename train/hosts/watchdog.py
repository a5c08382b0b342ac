"""Ends a process that waits for a host that will not come, and says which host that is.

A collective waits for its slowest member without limit, and JAX's heartbeats only see a process that is gone, not one
whose Python is stuck in a data loader or a file system. Here every process publishes what it is doing in the key-value
store of JAX's coordination service, some seconds apart, and reads what the others publish. It gives up, with a report
of what every host was doing and exit code 42 ("start me again"), when

* a process has published nothing for `dead_after` seconds: it was killed, or its machine is gone or frozen;
* the coordination service, which process 0 runs, has not answered for as long;
* this process, and those that it waits for, have been in one phase for too long: `stall_after` seconds, or ten times
  its fastest step where that is more, of a step or of waiting for a batch, and `slow_after` of anything else
  (compiling, restoring, evaluating, saving). Guilty is who entered the earliest step;
* a process has published that it fails: the others end with its exit code.

JAX's client ends a process by itself, from C++, as soon as process 0 is gone. Nothing in the process can then say a
word; `LastWords` does.
"""

import contextlib
import faulthandler
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..configs import HostsConfig
from .exit_codes import RESTART
from .phases import Activity
from .processes import Coordinator

_QUICK = ("input", "step")  # phases that last as long as a step
_ORDER = {"input": 0, "compile": 1, "step": 1, "save": 2, "evaluate": 2}  # within a step


class Watchdog:
    """Publishes and judges, in threads of its own, from `start` to `stop`.

    `period` is the time between two beats, in seconds.

    Args:
      index, names: this process, and what every process is called in messages.
      activity: of this process.
      leave: ends the process; told the exit code, after the report was printed.
    """

    def __init__(
        self,
        store: Coordinator,
        *,
        index: int,
        names: list[str],
        activity: Activity,
        config: HostsConfig,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._store, self._index, self._names = store, index, names
        self._activity, self._config, self._leave = activity, config, leave
        self.period = max(min(2.0, config.dead_after / 5), len(names) / 32)  # the service answers all of them
        self._stopped = threading.Event()
        self._answered = time.monotonic()  # when the coordination service last did
        self._beats: dict[int, tuple[int, float]] = {}  # process -> its newest beat, and when that was seen first
        self._reports: dict[int, dict[str, Any]] = {}
        self._steps: list[float] = []  # seconds of this process' last steps
        self._last_step, self._first_step = (0, time.monotonic()), 0
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._publish, self._judge)]

    def start(self) -> None:
        """Every process has been heard of by now: JAX's runtime starts only when all are there."""
        self._beats = {i: (0, time.monotonic()) for i in range(len(self._names))}
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """This process ends as it should: the others are told that its silence means nothing."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=2 * self.period)
        with contextlib.suppress(Exception):  # process 0, which serves this, may have ended first
            self._exchange(beat=-1)

    def fail(self, code: int, message: str) -> None:
        """Tells the others that this process ends, and why (a message such as "failed: ..."); judges no more."""
        self._stopped.set()
        value = json.dumps({"code": code, "message": message})
        self._store.key_value_set(f"deberta_jax/failed/{self._index}", value, allow_overwrite=True)

    def lost(self) -> list[int]:
        """The processes that have been silent for too long."""
        if self._index and time.monotonic() - self._answered > self._config.dead_after:
            return [0]
        now = time.monotonic()
        return [i for i, (beat, seen) in self._beats.items() if beat >= 0 and now - seen > self._config.dead_after]

    # ---------------------------------------------------------------- the two threads

    def _publish(self) -> None:
        beat = 0
        while not self._stopped.is_set():
            beat += 1
            try:
                self._exchange(beat)
            except Exception:  # the service is gone or hangs: _judge sees how long that lasts
                time.sleep(self.period / 4)
            self._stopped.wait(self.period)

    def _exchange(self, beat: int) -> None:
        doing = self._activity
        mine = {
            "beat": beat,
            "step": doing.step,
            "phase": doing.phase,
            "seconds": round(time.monotonic() - doing.since, 1),
            "where": doing.where(),
        }
        self._store.key_value_set(f"deberta_jax/alive/{self._index}", json.dumps(mine), allow_overwrite=True)
        now = time.monotonic()
        for key, value in self._store.key_value_dir_get("deberta_jax/alive/"):
            index, report = int(key.rpartition("/")[2]), json.loads(value)
            if report["beat"] != self._beats.get(index, (0, 0.0))[0]:
                self._beats[index] = (report["beat"], now)
            self._reports[index] = report
        failed = self._store.key_value_dir_get("deberta_jax/failed/")
        self._answered = time.monotonic()
        others = [(int(key.rpartition("/")[2]), json.loads(value)) for key, value in failed]
        for index, failure in others:
            if index != self._index and not self._stopped.is_set():
                self._leave_with(failure["code"], f"{self._names[index]} {failure['message']}")

    def _judge(self) -> None:
        while not self._stopped.wait(min(1.0, self.period)):
            self._measure()
            if lost := self.lost():
                silent = f"nothing heard for {self._config.dead_after:g} s"
                self._give_up(RESTART, f"lost {', '.join(self._names[i] for i in lost)}: {silent}")
            elif (seconds := self._waited()) > (limit := self._limit()):
                stuck = ", ".join(self._names[i] for i in self._suspects())
                phase = f"step {self._activity.step}, {self._activity.phase}"
                self._give_up(
                    RESTART,
                    f"stalled: {self._names[self._index]} has been in {phase} for {seconds:.0f} s (limit {limit:.0f}). "
                    f"All wait for {stuck}",
                )

    def _measure(self) -> None:
        step, now = self._activity.step, time.monotonic()
        known, when = self._last_step
        if step > known:
            self._first_step = self._first_step or step
            if known > self._first_step:  # the first one compiles
                self._steps = [*self._steps[-99:], (now - when) / (step - known)]
            self._last_step = (step, now)

    def _waited(self) -> float:
        """Seconds for which neither this process nor one that it waits for has got any further."""
        # Of the others, too: who waited for one that compiled has not waited for the step that this one now takes.
        now = time.monotonic()
        others = [i for i in self._suspects() if i != self._index]
        theirs = [self._reports[i]["seconds"] + now - self._beats[i][1] for i in others]
        return min([now - self._activity.since, *theirs])

    def _limit(self) -> float:
        # Who waits in a step for one that still compiles has that one's limit: not all find the program in the cache.
        phases = [self._reports[i]["phase"] for i in self._suspects() if i != self._index]
        if any(phase not in _QUICK for phase in [self._activity.phase, *phases]):
            return self._config.slow_after
        # Not the median: the steps after a start wait for the last process to compile.
        return max(self._config.stall_after, 10 * min(self._steps, default=0.0))

    def _suspects(self) -> list[int]:
        """Those who are least far: everybody else waits for them."""
        running = {i: one for i, one in list(self._reports.items()) if one["beat"] >= 0}
        place = {i: (one["step"], _ORDER.get(one["phase"], 0)) for i, one in running.items()}
        return [i for i, one in place.items() if one == min(place.values())]

    def _give_up(self, code: int, reason: str) -> None:
        lines = ["What every process was doing:"]
        for index, name in enumerate(self._names):
            one, now = self._reports.get(index), time.monotonic()
            if one is None:
                lines.append(f"  {name}: never heard of")
                continue
            silence = now - self._beats[index][1]
            heard = "ended" if one["beat"] < 0 else f"heard {silence:.0f} s ago"
            doing = f"step {one['step']}, {one['phase']} for {one['seconds']} s"
            lines.append(f"  {name}: {doing}, {heard}; {one['where']}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        # The others are told: they would take this process for the lost one, or blame process 0, with which JAX aborts
        # them. By a thread, as the service may be what does not answer.
        telling = threading.Thread(target=self.fail, args=(code, f"gives up: {reason}"), daemon=True)
        telling.start()
        telling.join(timeout=self.period)
        self._leave_with(code, reason)

    def _leave_with(self, code: int, reason: str) -> None:
        self._stopped.set()  # one verdict: the others fall silent while this process lingers
        print(f"{self._names[self._index]}: {reason}. Exit code {code}", file=sys.stderr, flush=True)
        if self._index == 0:  # the others have to read what it serves before JAX aborts them
            time.sleep(5 * self.period)
        self._leave(code)


class LastWords:
    """A small process that prints a line should this one die without a word: by SIGKILL, or aborted by JAX itself."""

    _PROGRAM = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "words = ''\n"
        "for words in sys.stdin: pass\n"
        "sys.stderr.write(words.strip() and words)\n"
    )

    def __init__(self, words: str) -> None:
        self._reader = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", self._PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self._write(words)

    def _write(self, words: str) -> None:
        assert self._reader.stdin is not None
        self._reader.stdin.write(words + "\n")
        self._reader.stdin.flush()

    def unsaid(self) -> None:
        """This process ends with words of its own."""
        with contextlib.suppress(BrokenPipeError):
            self._write("")
