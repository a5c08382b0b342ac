"""Several processes of one run on this machine: JAX's distributed runtime on loopback, gloo between CPU devices."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass
class Process:
    """One process of a cluster; its output is in a file, so that nothing blocks on a full pipe."""

    popen: subprocess.Popen
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ends_within(self, seconds: float) -> int:
        """Its exit code. Raises AssertionError, with what it said, where it goes on."""
        try:
            return self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s; it said:\n{self.said[-3000:]}") from None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def cluster(
    arguments: Sequence[str],
    folder: Path,
    *,
    count: int,
    devices: int = 1,
    change: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> Iterator[list[Process]]:
    """Starts `python ARGUMENTS --hosts.coordinator ... --hosts.index i` `count` times, each with `devices` CPU devices.

    The output of process i goes to folder/i.log, after that of earlier starts. What runs at the end is killed.
    change: what single processes get as further arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    shared = {
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
                    [sys.executable, *arguments, *change.get(index, ()), *hosts],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=shared,
                )
            processes.append(Process(popen, log))
        yield processes
    finally:
        for process in processes:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)
                process.popen.kill()
                process.popen.wait()


def wait_until(condition, *, seconds: float, what: str) -> None:
    """Raises AssertionError where the condition does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
