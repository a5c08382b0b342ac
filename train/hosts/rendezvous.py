"""All processes of a run meet at the coordinator's address before JAX connects them there.

JAX aborts a process from C++ (exit code 134) if another one has its index, if the address is wrong, or if a process is
missing, and names none of them; a taken index ends all processes. So process 0 first listens at the address itself.
Every other process sends it one line of JSON, `{"deberta_jax": 1, "index": 1, "count": 4, "host": "host-b"}`, and keeps
the connection open. When all are there, process 0 answers all of them, closes its socket, and JAX takes over.

A process that meets JAX's service instead, because a run that lost it has not ended yet, tries again.
"""

import contextlib
import dataclasses
import errno
import json
import socket
import time
from typing import Any

from deberta_jax.errors import UserError, one_line

from ..host_configs import HostsConfig, split_address
from .exit_codes import RestartError

_RESOLVE_SECONDS = 20.0  # a name of a new machine may be unknown for some seconds
_PAUSE = 0.5
_ANSWER_SECONDS = 5.0  # for the line of a process that has connected
_GRACE_SECONDS = 10.0
_LONGEST_LINE = 1000
_OCCUPIED = "another program has that port, or a run that began without this process: see that no other has its index"


def meet(config: HostsConfig, bind: str | None) -> None:
    """Waits until all processes are there. Every process calls it.

    Args:
      config: the settings, with a coordinator.
      bind: the address at which process 0 listens; None means all interfaces.

    Raises:
      UserError: the address cannot be used, or another process has the index of this one or another count.
      RestartError: some processes were not there within `start_within` seconds.
    """
    assert config.coordinator is not None
    assert config.count is not None
    if config.index == 0:
        _gather(config, bind, config.count)
    else:
        _join(config)


# ---------------------------------------------------------------- process 0


@dataclasses.dataclass
class _Visitor:
    """A connection from which no whole line has come yet."""

    connection: socket.socket
    received: bytes = b""
    since: float = dataclasses.field(default_factory=time.monotonic)


def _gather(config: HostsConfig, bind: str | None, count: int) -> None:
    deadline = time.monotonic() + config.start_within
    visitors: list[_Visitor] = []
    joined: dict[int, tuple[socket.socket, str]] = {}
    with contextlib.ExitStack() as cleanup:
        listener = cleanup.enter_context(_listen(config, bind))
        listener.settimeout(_PAUSE)
        while len(joined) < count - 1:
            if time.monotonic() > deadline:
                missing = [str(index) for index in range(1, count) if index not in joined]
                reason = (
                    f"{len(missing)} of {count} processes have not joined at {config.coordinator} within "
                    f"{config.start_within} s: index {', '.join(missing[:20])}; see their logs"
                )
                _tell(joined, {"failed": reason})
                raise RestartError(reason)
            with contextlib.suppress(OSError):  # none has connected, or it is gone already
                visitors.append(_Visitor(cleanup.enter_context(listener.accept()[0])))
            visitors = [visitor for visitor in visitors if not _is_done(visitor, joined, count)]
            # One that was stopped may come again.
            joined = {index: process for index, process in joined.items() if not _is_closed(process[0])}
        _tell(joined, {"start": True})


def _is_done(visitor: _Visitor, joined: dict[int, tuple[socket.socket, str]], count: int) -> bool:
    """Reads what a visitor has sent so far. Returns whether it has joined or was sent away."""
    visitor.connection.setblocking(False)
    try:
        visitor.received += (part := visitor.connection.recv(_LONGEST_LINE))
        is_over = not part
    except BlockingIOError:
        is_over = time.monotonic() > visitor.since + _ANSWER_SECONDS
    except OSError:
        is_over = True
    if visitor.received.endswith(b"\n"):
        with contextlib.suppress(OSError):
            _welcome(visitor.connection, _parse(visitor.received), joined, count)
    elif is_over or len(visitor.received) > _LONGEST_LINE:
        visitor.connection.close()
    else:
        return False
    return True


def _tell(joined: dict[int, tuple[socket.socket, str]], line: dict[str, Any]) -> None:
    for connection, _ in joined.values():
        with contextlib.suppress(OSError):  # a process that is gone now is missed by JAX
            _send(connection, line)


def _listen(config: HostsConfig, bind: str | None) -> socket.socket:
    host, port = split_address(bind or config.coordinator or "")
    try:
        if bind is not None:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        advice = "end the program that uses it, or give another port to all processes"
        if error.errno != errno.EADDRINUSE:
            advice = "give another port to all processes"
        raise UserError(f"process 0 cannot listen at {config.coordinator}: {one_line(error)}; {advice}") from None


def _welcome(connection: socket.socket, line: Any, joined: dict[int, tuple[socket.socket, str]], count: int) -> None:
    """Notes who has connected, or answers why it cannot take part. Whatever is not a process of a run is ignored."""
    if not isinstance(line, dict) or line.get("deberta_jax") != 1:
        connection.close()
        return
    index, host = line.get("index"), str(line.get("host"))[:200]
    if line.get("count") != count:
        _refuse(connection, f"--hosts.count is {line.get('count')} on {host}, but {count} on process 0")
    elif not isinstance(index, int) or not 0 < index < count:
        _refuse(connection, f"--hosts.index is {index} on {host}; it must be 1 to {count - 1}")
    elif index in joined and not _is_closed(joined[index][0]):
        _refuse(connection, f"--hosts.index {index} of {host} is that of another process, on {joined[index][1]}")
    else:
        joined[index] = connection, host


def _refuse(connection: socket.socket, reason: str) -> None:
    _send(connection, {"refused": reason})
    connection.close()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


# ---------------------------------------------------------------- the others


def _join(config: HostsConfig) -> None:
    began = time.monotonic()
    address = split_address(config.coordinator or "")
    hello = {"deberta_jax": 1, "index": config.index, "count": config.count, "host": socket.gethostname()}
    reason = "no answer"
    while (waited := time.monotonic() - began) < config.start_within:
        try:
            with socket.create_connection(address, timeout=_ANSWER_SECONDS) as connection:
                _send(connection, hello)
                # Longer than process 0, which knows who is missing.
                answer = _receive(connection, seconds=config.start_within - waited + _GRACE_SECONDS)
        except socket.gaierror as error:
            if waited > _RESOLVE_SECONDS:
                raise UserError(
                    f"--hosts.coordinator {config.coordinator}: the name {address[0]!r} cannot be resolved "
                    f"({one_line(error)}); give the name or the address of process 0"
                ) from None
        except TimeoutError:
            reason = _OCCUPIED
        except OSError as error:
            reason = one_line(error)
        else:
            if isinstance(answer, dict) and "refused" in answer:
                raise UserError(f"{answer['refused']}; give every process its own index and the same count")
            if isinstance(answer, dict) and answer.get("start") is True:
                return
            if isinstance(answer, dict) and "failed" in answer:
                raise RestartError(str(answer["failed"]))
            reason = _OCCUPIED
        time.sleep(_PAUSE)
    raise RestartError(
        f"process 0 did not start the run at {config.coordinator} within {config.start_within} s ({reason}); "
        "see its log"
    )


# ---------------------------------------------------------------- lines of JSON


def _send(connection: socket.socket, line: dict[str, Any]) -> None:
    connection.settimeout(_ANSWER_SECONDS)
    connection.sendall(json.dumps(line).encode() + b"\n")


def _receive(connection: socket.socket, *, seconds: float) -> Any:
    """Returns the value of a line, or None if what comes within some seconds is no line of JSON."""
    deadline = time.monotonic() + seconds
    received = b""
    while not received.endswith(b"\n") and len(received) < _LONGEST_LINE:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        part = connection.recv(_LONGEST_LINE)
        if not part:
            return None
        received += part
    return _parse(received)


def _parse(received: bytes) -> Any:
    try:
        return json.loads(received)
    except (ValueError, RecursionError):
        return None
