"""Messages that cannot be printed: the disk of the log is full, or its reader is gone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from deberta_jax.terminal import say
from deberta_jax.train.configs import HostsConfig
from deberta_jax.train.hosts.phases import PhaseTimer
from deberta_jax.train.hosts.solo_watchdog import SoloWatchdog


@pytest.fixture(params=["full disk", "no reader", "closed"])
def broken(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """A file that cannot be written."""
    if request.param == "full disk":
        if not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    stream = os.fdopen(descriptor, "w", buffering=1)
    if request.param == "closed":
        stream.close()
    yield stream
    with contextlib.suppress(OSError):
        stream.close()


def test_a_message_that_cannot_be_printed_is_dropped(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", broken)
    with pytest.raises((OSError, ValueError)):
        print("lost", file=sys.stderr, flush=True)
    say("lost, too", error=True)


def test_a_watchdog_that_cannot_print_ends_the_process(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread would die of the error, and the process would hang for ever."""
    monkeypatch.setattr(sys, "stderr", broken)
    monkeypatch.setattr(sys, "gettrace", lambda: None)  # coverage traces
    phases, exits = PhaseTimer(), []
    watchdog = SoloWatchdog(phases, HostsConfig(slow_after=1), terminate=exits.append)
    phases.enter("compile", 1)
    watchdog.look(phases.since + 5)
    assert exits == [42]
