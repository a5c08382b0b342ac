"""Several processes of one run on this machine: JAX's distributed runtime on loopback, gloo between CPU devices."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass
class Process:
    """One process of a cluster. Its output goes to a file, so that it never blocks on a full pipe."""

    popen: subprocess.Popen
    log: Path

    @property
    def output(self) -> str:
        """What the process, and earlier ones with the same log, have printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for_exit(self, seconds: float) -> int:
        """Returns the exit code.

        Raises:
          AssertionError: the process is still running after so many seconds; the message has its output.
        """
        try:
            return self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s; its output:\n{self.output[-3000:]}") from None


def free_port() -> int:
    """Returns a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def cluster(
    arguments: Sequence[str],
    folder: Path,
    *,
    count: int,
    devices: int = 1,
    extra_arguments: Mapping[int, Sequence[str]] = MappingProxyType({}),
    extra_environment: Mapping[int, Mapping[str, str]] = MappingProxyType({}),
    working_folders: Mapping[int, Path] = MappingProxyType({}),
) -> Iterator[list[Process]]:
    """Starts `python ARGUMENTS --hosts.coordinator ADDRESS --hosts.count COUNT --hosts.index I` for each I.

    Processes that still run at the end are killed.

    Args:
      folder: receives the output of process I in I.log, after that of earlier starts.
      count: number of processes.
      devices: number of CPU devices of each process.
      extra_arguments: further arguments of single processes.
      extra_environment: further environment variables of single processes.
      working_folders: the current folders of single processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONUNBUFFERED": "1",
    }
    processes = []
    try:
        for index in range(count):
            hosts = ["--hosts.coordinator", address, "--hosts.count", str(count), "--hosts.index", str(index)]
            log = folder / f"{index}.log"
            with open(log, "a", encoding="utf-8") as output:
                popen = subprocess.Popen(
                    [sys.executable, *arguments, *extra_arguments.get(index, ()), *hosts],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**environment, **extra_environment.get(index, {})},
                    cwd=working_folders.get(index),
                )
            processes.append(Process(popen, log))
        yield processes
    finally:
        for process in processes:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)  # a stopped process cannot be reaped
                process.popen.kill()
                process.popen.wait()


def wait_until(condition: Callable[[], object], *, seconds: float, purpose: str, interval: float = 0.05) -> None:
    """Waits until a condition is true, which is tested every `interval` seconds.

    Raises:
      AssertionError: it is still false after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {purpose}"
        time.sleep(interval)


def wait_while_running(
    processes: Sequence[Process],
    condition: Callable[[], object],
    *,
    seconds: float,
    purpose: str,
    interval: float = 0.05,
) -> None:
    """Waits until a condition is true, while all processes run.

    Raises:
      AssertionError: a process has ended before, or the condition is still false after so many seconds.
    """

    def check() -> bool:
        for index, process in enumerate(processes):
            code = process.popen.poll()
            assert code is None, f"process {index} ended with {code} before {purpose}:\n{process.output[-3000:]}"
        return bool(condition())

    wait_until(check, seconds=seconds, purpose=purpose, interval=interval)


def wait_for_success(processes: Sequence[Process], *, seconds: float) -> None:
    """Waits until all processes have exited with 0.

    Raises:
      AssertionError: one of them failed, which the others would wait for, or time is over; with its output.
    """

    def all_succeeded() -> bool:
        codes = [process.popen.poll() for process in processes]
        for index, code in enumerate(codes):
            assert code in (None, 0), f"process {index} exited with {code}:\n{processes[index].output[-3000:]}"
        return codes == [0] * len(codes)

    wait_until(all_succeeded, seconds=seconds, purpose="all processes to exit")
