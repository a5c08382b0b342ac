"""What several hosts need beside training itself: agreement, the watchdog, exit codes, the account of the time."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from deberta_jax.train.checkpoints.storage_faults import Fault
from deberta_jax.train.configs import HostsConfig
from deberta_jax.train.hosts.exit_codes import StoppedError, exit_code
from deberta_jax.train.hosts.join import Hosts, agree, code_fingerprint
from deberta_jax.train.hosts.phases import Activity
from deberta_jax.train.hosts.watchdog import Watchdog
from deberta_jax.train.reporting.goodput import Goodput, GoodputLog, read_goodput

QUICK = HostsConfig(dead_after=1.2, stall_after=2.0, slow_after=6.0)
NAMES = ["process 0 on a", "process 1 on b", "process 2 on c"]


class Store:
    """The key-value store of JAX's coordination service, for threads of one process."""

    def __init__(self, count: int = 3) -> None:
        self.values: dict[str, str] = {}
        self.frozen = threading.Event()
        self.barrier = threading.Barrier(count)

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self._answer()
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        self._answer()
        return [(name, value) for name, value in self.values.items() if name.startswith(key)]

    def blocking_key_value_get(self, key: str, _timeout: int) -> str:
        while key not in self.values:
            time.sleep(0.01)
        return self.values[key]

    def wait_at_barrier(self, _name: str, _timeout: int) -> None:
        self.barrier.wait(timeout=10)

    def _answer(self) -> None:
        while self.frozen.is_set():
            time.sleep(0.01)


class Dogs:
    """The watchdogs of three processes, and with which code and when each of them left."""

    def __init__(self) -> None:
        self.store, self.left = Store(), {}
        self.activities = [Activity() for _ in NAMES]
        self.began = time.monotonic()
        self.dogs = [
            Watchdog(self.store, index=i, names=NAMES, activity=activity, config=QUICK, leave=self._leaver(i))
            for i, activity in enumerate(self.activities)
        ]

    def _leaver(self, index: int):
        def leave(code: int) -> None:
            self.left.setdefault(index, (code, time.monotonic() - self.began))
            self.dogs[index]._stopped.set()

        return leave

    def run(self, seconds: float, *, working: set[int], dead: set[int] = frozenset()) -> None:
        """Lets the processes of `working` go from step to step; `dead` publish nothing."""
        for index, dog in enumerate(self.dogs):
            if index not in dead:
                dog.start()
        end = time.monotonic() + seconds
        step = 0
        while time.monotonic() < end:
            step += 1
            for index in working:
                self.activities[index].enter("input", step)
                self.activities[index].enter("step")
            time.sleep(0.05)

    def until_left(self, *indices: int) -> None:
        """Waits for these to leave: on a busy machine a report takes its time."""
        end = time.monotonic() + 20
        while not set(indices) <= self.left.keys() and time.monotonic() < end:
            time.sleep(0.05)


def test_nobody_is_blamed_while_all_work():
    dogs = Dogs()
    dogs.run(2.5, working={0, 1, 2})
    assert not dogs.left
    for dog in dogs.dogs:
        dog.stop()


def test_a_silent_process_is_named_and_the_others_end_with_42(capfd):
    dogs = Dogs()
    dogs.run(4.0, working={0, 1, 2}, dead={1})
    dogs.until_left(0, 2)
    assert {index: code for index, (code, _) in dogs.left.items()} == {0: 42, 2: 42}
    assert all(1.1 < when < 10 for _, when in dogs.left.values())
    told = capfd.readouterr().err
    assert "process 0 on a: lost process 1 on b: nothing heard for 1.2 s. Exit code 42" in told
    assert "process 1 on b: never heard of" in told
    assert "Current thread" in told  # the stacks


def test_a_stuck_process_is_named_by_all_although_it_still_beats(capfd):
    """2 waits for its data; the others have gone on to the next step and wait for 2."""
    dogs = Dogs()
    for index, activity in enumerate(dogs.activities):
        activity.enter("input", 7)
        if index != 2:
            activity.enter("step", 7)
    dogs.run(4.5, working=set())
    dogs.until_left(0, 1, 2)
    assert {code for code, _ in dogs.left.values()} == {42}
    told = capfd.readouterr().err
    assert (
        "process 0 on a has been in step 7, step for 2 s (limit 2). All wait for process 2 on c. Exit code 42" in told
    )
    assert "process 2 on c: step 7, input for" in told
    assert "test_hosts.py" in told  # where it is


@pytest.mark.parametrize("compiling", [{0, 1, 2}, {2}])
def test_slow_phases_may_last_longer_and_so_may_the_wait_for_one(compiling):
    dogs = Dogs()
    for index, activity in enumerate(dogs.activities):
        activity.enter("compile", 1)
        if index not in compiling:
            activity.enter("step", 2)
    dogs.run(3.0, working=set())
    assert not dogs.left
    for index in compiling:  # now it has the limit of a step, from here on
        dogs.activities[index].enter("step", 2)
    time.sleep(1.0)
    assert not dogs.left
    for dog in dogs.dogs:
        dog.stop()


def test_long_steps_raise_the_limit_and_the_first_one_does_not_count():
    dog = Dogs().dogs[0]
    for step, seconds in ((3, 2.0), (4, 0.5), (5, 0.4), (6, 0.0)):  # it goes on from step 2
        dog._activity.enter("step", step)
        dog._measure()
        time.sleep(seconds)
    assert dog._limit() == pytest.approx(10 * 0.4, rel=0.3)
    dog._activity.enter("save")
    assert dog._limit() == 6


def test_a_frozen_coordinator_is_named(capfd):
    dogs = Dogs()
    threading.Timer(0.5, dogs.store.frozen.set).start()
    dogs.run(3.2, working={0, 1, 2})
    dogs.until_left(1, 2)
    dogs.store.frozen.clear()
    assert dogs.left[1][0] == dogs.left[2][0] == 42
    assert "process 1 on b: lost process 0 on a: nothing heard" in capfd.readouterr().err


def test_a_failure_is_passed_on_with_its_code_and_no_stacks(capfd):
    dogs = Dogs()
    threading.Timer(0.3, lambda: dogs.dogs[1].fail(1, "failed: no such column")).start()
    dogs.run(1.0, working={0, 1, 2})
    dogs.until_left(0, 2)
    assert {index: code for index, (code, _) in dogs.left.items()} == {0: 1, 2: 1}
    told = capfd.readouterr().err
    assert "process 0 on a: process 1 on b failed: no such column. Exit code 1" in told
    assert "thread" not in told


def test_a_process_that_has_ended_is_not_missed():
    dogs = Dogs()
    threading.Timer(0.3, dogs.dogs[1].stop).start()
    dogs.run(3.0, working={0, 2})
    assert not dogs.left
    for dog in dogs.dogs:
        dog.stop()


@pytest.mark.parametrize(("then", "said"), [("pass", "process 1 died\n"), ("words.unsaid()", "")])
def test_last_words_are_said_for_a_killed_process_only(then, said):
    program = (
        "import os, signal\n"
        "from deberta_jax.train.hosts.watchdog import LastWords\n"
        f"words = LastWords('process 1 died'); {then}\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    # The reader of the words has the other end of stderr too: this waits for both to end.
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, said)


# ---------------------------------------------------------------------------------------------- agreement


def agreement(facts: list[dict], monkeypatch, *, clocks: tuple[float, ...] = (0, 0, 0), within: float = 10) -> list:
    """What `agree` gives or raises on three processes, run as threads."""
    store, found = Store(), [None] * 3
    hosts = []
    for index in range(3):
        host = Hosts()
        host.index, host.count = index, 3
        hosts.append(host)
    now = time.time
    monkeypatch.setattr(
        "deberta_jax.train.hosts.join.time.time", lambda: now() + clocks[int(threading.current_thread().name)]
    )

    def run(index: int) -> None:
        try:
            found[index] = agree(store, hosts[index], facts[index], clock_within=within)
        except ValueError as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), name=str(index)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


FACTS = {"settings": {"seed": 1, "optimizer": {"learning_rate": 1e-3}}, "code of deberta_jax": "ab"}


def test_hosts_that_agree_get_their_names(monkeypatch):
    names = agreement([FACTS] * 3, monkeypatch, clocks=(0, 4, -4))
    assert names[0] == names[1] == names[2]
    assert names[0][2].startswith("process 2 on ")


@pytest.mark.parametrize(
    ("odd", "clocks", "message"),
    [
        ({**FACTS, "settings": {"seed": 2, "optimizer": {}}}, (0, 0, 0), r"process 1 on \S+: settings.optimizer.* is "),
        ({**FACTS, "code of deberta_jax": "cd"}, (0, 0, 0), 'code of deberta_jax is "cd", elsewhere "ab"'),
        ({**FACTS, "more": 3}, (0, 0, 0), "more is 3, elsewhere absent"),
        (FACTS, (0, 95, 0), r"its clock differs by \+95 s \(at most 10 allowed\)"),
    ],
)
def test_the_host_that_differs_is_refused_by_name_on_all(odd, clocks, message, monkeypatch):
    found = agreement([FACTS, odd, FACTS], monkeypatch, clocks=clocks)
    assert len({str(error) for error in found}) == 1
    with pytest.raises(ValueError, match=message):
        raise found[0]
    assert "process 0" not in str(found[0])
    assert "process 2" not in str(found[0])


def test_the_fingerprint_is_that_of_the_code():
    assert len(code_fingerprint()) == 12
    assert code_fingerprint() == code_fingerprint()


# ---------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such column"), 1),
        (KeyError("a mistake of ours"), 1),
        (FileNotFoundError(errno.ENOENT, "no such file"), 1),
        (OSError(errno.EIO, "Input/output error"), 42),
        (Fault("passing", "Input/output error").error("could not write"), 42),
        (Fault("full", "the disk is full").error("could not write"), 42),
        (Fault("denied", "permission denied").error("could not write"), 1),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), 42),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 42),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm"), 1),
    ],
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_a_signal_asks_for_a_stop_and_the_old_handler_comes_back():
    hosts, before = Hosts(), signal.getsignal(signal.SIGTERM)
    with hosts.listening():
        assert not hosts.stop_requested(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert hosts.stop_requested(2)
    assert signal.getsignal(signal.SIGTERM) is before
    stopped = hosts.stopped(2)
    assert isinstance(stopped, StoppedError)
    assert stopped.code == 42
    assert "preempted (SIGTERM): step 2 is saved" in str(stopped)


def test_the_time_limit_asks_for_a_stop_and_is_no_failure():
    hosts = Hosts(max_seconds=0.05)
    assert not hosts.stop_requested(1)
    time.sleep(0.06)
    assert hosts.stop_requested(2)
    assert hosts.stopped(2).code == 0
    assert "--max-seconds 0.05: step 2 is saved" in str(hosts.stopped(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "a:1"}, "coordinator given; give coordinator, count and index, or none"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "index is 2; it must be 0 to 1, count being 2"),
        ({"dead_after": 0}, "dead_after is 0; it must be above 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        HostsConfig(**settings)


# ---------------------------------------------------------------------------------------------- where the time went


def test_every_moment_belongs_to_one_phase():
    activity = Activity()
    for phase in ("restore", "compile", "input", "step", "save"):
        activity.enter(phase)
        time.sleep(0.02)
    seconds = activity.seconds()
    assert sum(seconds.values()) == pytest.approx(activity.elapsed, abs=0.01)
    assert all(seconds[phase] >= 0.02 for phase in ("restore", "compile", "input", "step", "save"))
    assert "test_every_moment_belongs_to_one_phase" in activity.where()


def line(began: float, written: float, steps: tuple[int, int], **seconds: float) -> str:
    first, last = steps
    return json.dumps({"began": began, "written": written, "from_step": first, "step": last, "seconds": seconds})


def test_goodput_counts_steps_once_and_the_time_between_starts(tmp_path: Path):
    """The first start reached step 40 and was killed; the second went on from 20, 15 s later."""
    lines = [
        line(100, 130, (0, 10), step=10, compile=20),
        line(100, 150, (0, 40), step=40, compile=20),
        line(165, 195, (20, 40), step=20, compile=10),
        '{"began": 165, "wri',
    ]
    (tmp_path / "goodput.jsonl").write_text("\n".join(lines))
    goodput = read_goodput(tmp_path)
    assert goodput == Goodput(2, useful=40.0, lost=20.0, between=15.0, phases={"compile": 30.0})
    assert goodput.total == 105
    assert str(goodput) == (
        "goodput 38.1% of 105 s in 2 starts; compile 28.6%, steps taken again 19.0%, between starts 14.3%"
    )


def test_the_log_writes_what_the_account_reads(tmp_path: Path):
    activity = Activity()
    log = GoodputLog(tmp_path, activity)
    log.resume_at(3)
    activity.enter("step", 4)
    time.sleep(0.05)
    log.write(4)
    goodput = read_goodput(tmp_path)
    assert goodput.starts == 1
    assert goodput.useful == pytest.approx(0.05, abs=0.03)
