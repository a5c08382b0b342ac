"""Processes that meet at an address, as threads with real sockets."""

import json
import socket
import threading
import time
from typing import Any

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.host_configs import HostsConfig, split_address
from deberta_jax.train.hosts import rendezvous
from deberta_jax.train.hosts.exit_codes import RestartError
from deberta_jax.train.hosts.rendezvous import meet

from ...support.cluster import free_port


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_PAUSE", 0.02)
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(rendezvous, "_RESOLVE_SECONDS", 0.0)
    monkeypatch.setattr(rendezvous, "_GRACE_SECONDS", 3.0)


class Meeting:
    """Processes of one run, each a thread; `outcomes` has how each of them ended."""

    def __init__(self, count: int, *, start_within: int = 20) -> None:
        self.address, self._count, self._seconds = f"127.0.0.1:{free_port()}", count, start_within
        self.outcomes: dict[str, Any] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, index: int, *, count: int | None = None) -> None:
        config = HostsConfig(
            coordinator=self.address, count=count or self._count, index=index, start_within=self._seconds
        )

        def run() -> None:
            try:
                meet(config, self.address if index == 0 else None)
                self.outcomes[name] = "met"
            except UserError as error:
                self.outcomes[name] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def wait_for(self, name: str) -> Any:
        deadline = time.monotonic() + 20
        while name not in self.outcomes and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.outcomes[name]

    def connect(self) -> socket.socket:
        host, port = split_address(self.address)
        for _ in range(500):
            try:
                return socket.create_connection((host, port), timeout=5)
            except ConnectionRefusedError:
                time.sleep(0.01)
        raise AssertionError("nobody listens")


def test_all_meet_in_any_order_and_the_port_is_free_again() -> None:
    meeting = Meeting(3)
    for index in (2, 0, 1):
        meeting.start(str(index), index)
    assert [meeting.wait_for(str(index)) for index in range(3)] == ["met"] * 3
    with socket.create_server(split_address(meeting.address)):
        pass


def test_a_taken_index_and_another_count_are_refused_and_the_others_meet() -> None:
    meeting = Meeting(3)
    meeting.start("0", 0)
    meeting.start("1", 1)
    time.sleep(0.2)
    meeting.start("twin", 1)
    meeting.start("wrong", 1, count=2)
    assert "--hosts.index 1 of" in str(meeting.wait_for("twin"))
    assert "is that of another process, on" in str(meeting.wait_for("twin"))
    assert "--hosts.count is 2 on" in str(meeting.wait_for("wrong"))
    assert meeting.outcomes["twin"].exit_status == 1
    meeting.start("2", 2)
    assert [meeting.wait_for(name) for name in "012"] == ["met"] * 3


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"[" * 2000, b"\n", b"null\n", b'{"deberta_jax": 1}\n'])
def test_garbage_on_the_port_is_ignored(garbage: bytes) -> None:
    meeting = Meeting(2)
    meeting.start("0", 0)
    with meeting.connect() as intruder, meeting.connect():
        intruder.sendall(garbage)
        meeting.start("1", 1)
        assert [meeting.wait_for(name) for name in "01"] == ["met"] * 2


def test_a_process_that_was_stopped_may_come_again() -> None:
    meeting = Meeting(3)
    meeting.start("0", 0)
    with meeting.connect() as first:
        first.sendall(json.dumps({"deberta_jax": 1, "index": 1, "count": 3, "host": "a"}).encode() + b"\n")
        time.sleep(0.2)
    meeting.start("1", 1)
    meeting.start("2", 2)
    assert [meeting.wait_for(name) for name in "012"] == ["met"] * 3


def test_missing_processes_are_named_and_another_start_may_help() -> None:
    meeting = Meeting(3, start_within=2)
    meeting.start("0", 0)
    meeting.start("2", 2)
    error = meeting.wait_for("0")
    assert isinstance(error, RestartError)
    assert "1 of 3 processes have not joined" in str(error)
    assert "index 1; see their logs" in str(error)
    assert isinstance(meeting.wait_for("2"), RestartError)
    assert str(meeting.wait_for("2")) == str(error)


def test_no_process_0_or_another_program_at_its_address() -> None:
    alone = Meeting(2, start_within=1)
    alone.start("1", 1)
    assert "within 1 s" in str(alone.wait_for("1"))
    assert "refused" in str(alone.wait_for("1"))
    other = Meeting(2, start_within=1)

    def answer(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            connection.sendall(b"\0\0\6\4\n")

    with socket.create_server(split_address(other.address)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        other.start("1", 1)
        other.start("0", 0)
        assert "cannot listen at" in str(other.wait_for("0"))
        assert "end the program that uses it" in str(other.wait_for("0"))
        assert isinstance(other.wait_for("1"), RestartError)


def test_a_name_that_cannot_be_resolved() -> None:
    config = HostsConfig(coordinator="no.such.name.invalid:1", count=2, index=1, start_within=20)
    with pytest.raises(UserError, match=r"the name 'no\.such\.name\.invalid' cannot be resolved"):
        meet(config, None)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1234", ("127.0.0.1", 1234)),
        ("[::1]:65535", ("::1", 65535)),
        ("host:1", ("host", 1)),
        *((address, "it must be ADDRESS:PORT") for address in ("127.0.0.1", "a:0", "a:65536", "a:x", ":1", "a:", "")),
        *((address, "it must be ADDRESS:PORT") for address in ("a:-1", "a:²", f"a:{'9' * 5000}", "[]:1")),
        ("::1:1234", "write an IPv6 address in brackets"),
    ],
)
def test_addresses(address: str, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert split_address(address) == expected
        return
    with pytest.raises(UserError, match=expected):
        HostsConfig(coordinator=address, count=2, index=0)
