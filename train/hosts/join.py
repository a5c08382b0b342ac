"""Several hosts as one run: how they connect, check that they agree, and end together.

JAX's own runtime (`jax.distributed`) connects the processes. This module adds what it lacks: a check that all hosts run
the same code with the same settings (`agreement`), a watchdog that names a host which died or hangs (`watchdog`), one
exit code for all hosts (`exit_codes`), and a stop at which all hosts save the same step. All work of a command happens
inside `with join_run(config) as hosts:`.

In the order of events:

1. Every process meets process 0 and waits there for all others, at most `start_within` seconds (`rendezvous`). Then JAX
   connects them.
2. All meet at a barrier, exchange their facts and compare them. If some differ, all raise the same error.
3. Each process starts a DeathNotice and a Watchdog. From here on every process ends when another one dies, hangs or
   fails: an exception on one host would otherwise leave the others waiting in a collective.
4. Process 0 locks the output folder (`folder_lock`), and all check that they see the same one (`shared_folder`).
5. A stop (SIGTERM on any process, or `max_seconds` on process 0) goes through JAX's preemption service, which picks one
   step for all: `Hosts.stop_requested` returns True on every process after the same step.
6. A process that fails publishes its failure (`_exit_all`), and waits until the others have read it. It exits by
   `os._exit`, past JAX's shutdown barrier, at which it would wait for the others, which hang in a collective.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax.errors import UserError, is_expected, one_line
from deberta_jax.mirrors import is_local_copy
from deberta_jax.orbax_path import orbax_path
from deberta_jax.process_start import take_process_start
from deberta_jax.terminal import say

from ..configs import FinetuneConfig, HostsConfig, PretrainConfig
from ..host_configs import split_address
from .agreement import check_agreement, gather_facts
from .compilation_cache import enable_compilation_cache
from .death_notice import DeathNotice
from .exit_codes import (
    DONE,
    RESTART,
    RestartError,
    StoppedError,
    StopRequested,
    exit_code,
    is_runtime_failure,
)
from .folder_lock import lock_folder
from .phases import PhaseTimer
from .processes import coordination_client
from .rendezvous import meet
from .shared_folder import check_shared_folder
from .solo_watchdog import SoloWatchdog
from .watchdog import Watchdog

_REMIND_SECONDS = 20


class Hosts:
    """The processes of a run, as one of them sees them.

    Attributes:
      index: the index of this process.
      count: the number of processes.
      first: whether this is process 0, which alone prints, logs and writes files that exist once.
      phases: what this process is doing; the training loop keeps it up to date.
    """

    def __init__(self, *, max_seconds: float | None = None, phases: PhaseTimer | None = None) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self.first = self.index == 0
        self.phases = phases or PhaseTimer()
        self._max_seconds = max_seconds
        self._signaled: signal.Signals | None = None
        self._asked = 0  # number of calls of stop_requested, the same on all processes
        self._stopping = False  # what it has returned

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Makes SIGTERM and SIGHUP request a stop instead of ending the process, inside the context.

        With several processes JAX's preemption service handles SIGTERM, as which SIGHUP is passed on to it. SIGHUP
        keeps being ignored where it is, as under nohup.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _: object) -> None:
            if _preemption_service():
                os.kill(os.getpid(), signal.SIGTERM)
            self._signaled = signal.Signals(number)

        handled = [] if _preemption_service() else [signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            handled.append(hangup)
        before = {number: signal.signal(number, note) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop_requested(self) -> bool:
        """Returns whether to save and stop now. Collective: every process calls it at the same points.

        Returns:
          The same answer on every process. Once it is True, it stays True.
        """
        self._asked += 1
        if self.first and self._signaled is None and self._out_of_time():
            self._signaled = signal.SIGTERM
            if _preemption_service():
                # Only a notice of preemption stops all processes at the same point, so process 0 sends itself one.
                os.kill(os.getpid(), signal.SIGTERM)
        if _preemption_service():
            self._stopping |= multihost_utils.reached_preemption_sync_point(self._asked)
        else:
            self._stopping = self._signaled is not None
        return self._stopping

    def check_stop(self) -> None:
        """Called after each batch of an evaluation or a prediction, which may be long. Collective.

        The time limit of the phase begins again.

        Raises:
          StopRequested: on every process, if `stop_requested`.
        """
        self.phases.enter(self.phases.phase)
        if self.stop_requested():
            raise StopRequested

    @contextlib.contextmanager
    def finishing(self, step: int, *, log: Callable[[str], None]) -> Iterator[None]:
        """Listens for a request to stop inside the context, where `step`, the last one, is saved.

        Args:
          log: receives the message of StoppedError.

        Raises:
          StoppedError: in place of StopRequested.
        """
        with self.listening():
            try:
                yield
            except StopRequested:
                raise self.stopped(step, log=log) from None

    def stopped(self, step: int, *, log: Callable[[str], None]) -> StoppedError:
        """Logs why the run stops, once `step` is saved, and returns the exception to raise. Collective."""
        out_of_time = self._out_of_time()
        if self.count > 1:
            out_of_time = bool(multihost_utils.broadcast_one_to_all(np.asarray(out_of_time)))
        resume = "run the same command again to continue"
        if out_of_time:
            reason, code = f"stopped after --max-seconds {self._max_seconds:g}: step {step} is saved; {resume}", DONE
        else:
            name = (self._signaled or signal.SIGTERM).name
            reason, code = f"preempted ({name}): step {step} is saved; {resume}. Exit code {RESTART}", RESTART
        log(reason)
        return StoppedError(reason, code)

    def _out_of_time(self) -> bool:
        return self._max_seconds is not None and self.phases.elapsed >= self._max_seconds


@contextlib.contextmanager
def join_run(config: PretrainConfig | FinetuneConfig) -> Iterator[Hosts]:
    """Connects the processes of a run, checks that they agree, and watches over them inside the context.

    With one process, errors pass through, except that a failure after which another start may succeed becomes a
    RestartError. With several, an error that leaves the context on one of them is printed with the name of its host and
    ends all processes by `os._exit` with one exit code (see `exit_codes`). That includes the UserError of processes
    which differ in settings, code, versions or clock.

    Raises:
      UserError: another run uses the output folder, nothing can be stored in a folder of its name, or JAX computes in
        64 bits.
    """
    phases = PhaseTimer(take_process_start())
    orbax_path(config.output)  # raises
    _start_runtime(config.hosts)
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError("jax_enable_x64 is on, which changes the types of all arrays; unset JAX_ENABLE_X64")
    enable_compilation_cache(config)
    hosts = Hosts(max_seconds=config.max_seconds, phases=phases)
    if hosts.count == 1:
        with _alone(config, hosts), lock_folder(config.output):
            yield hosts
        return
    if is_local_copy(config.output):
        raise UserError(
            f"--output {config.output}: a run of {hosts.count} processes needs a folder that all of them see; mount "
            "the bucket, for instance by gcsfuse, and give its folder (docs/checkpoints.md)"
        )
    client = coordination_client()
    try:
        names = check_agreement(
            client,
            gather_facts(config),
            index=hosts.index,
            count=hosts.count,
            clock_within=config.hosts.clock_within,
        )
    except Exception as error:
        _exit(f"process {hosts.index} on {socket.gethostname()}", error, linger=1.0)
    if hosts.first:
        say("\n".join(["processes:", *(f"  {name}" for name in names)]), error=True)
    aborted = f", or aborted by JAX because {names[0]}, the coordinator, was lost" if hosts.index else ""
    notice = DeathNotice(f"{names[hosts.index]} died without a message: killed, or out of memory{aborted}")

    def terminate(code: int) -> None:
        notice.cancel()
        os._exit(code)

    watchdog = Watchdog(
        client, index=hosts.index, names=names, phases=hosts.phases, config=config.hosts, terminate=terminate
    )
    watchdog.start()
    try:
        with lock_folder(config.output) if hosts.first else contextlib.nullcontext():
            check_shared_folder(client, config.output, index=hosts.index, names=names)
            yield hosts
    except StoppedError:
        notice.cancel()
        watchdog.stop()
        raise
    except BaseException as error:
        _exit_all(names[hosts.index], error, watchdog=watchdog, notice=notice, config=config.hosts)
    notice.cancel()
    watchdog.stop()


@contextlib.contextmanager
def _alone(config: PretrainConfig | FinetuneConfig, hosts: Hosts) -> Iterator[None]:
    """Watches over the only process of a run."""
    watchdog = SoloWatchdog(hosts.phases, config.hosts)
    watchdog.start()
    try:
        yield
    except Exception as error:
        if exit_code(error) == RESTART and not isinstance(error, RestartError):
            raise RestartError(f"{one_line(error)}. Run the same command again to continue") from error
        raise
    finally:
        watchdog.stop()


def _start_runtime(config: HostsConfig) -> None:
    """Connects the processes, if there are several. Does nothing if they are connected already."""
    if jax.distributed.is_initialized():
        return
    settings: dict[str, Any] = {
        "initialization_timeout": config.start_within,
        # Later than the watchdog, which names the host: JAX's heartbeat has only its number, and aborts the process.
        "heartbeat_timeout_seconds": max(100, int(3 * config.dead_after)),
    }
    connected = threading.Event()
    threading.Thread(target=_remind, args=(connected, config), daemon=True).start()
    try:
        if config.coordinator is not None:
            bind = _bind_address(config.coordinator) if config.index == 0 else None
            if config.count != 1:
                meet(config, bind)
            if config.index == 0:
                settings["coordinator_bind_address"] = bind
            jax.distributed.initialize(config.coordinator, config.count, config.index, **settings)
            return
        try:
            jax.distributed.initialize(**settings)
        except ValueError as error:
            if "coordinator_address" not in str(error):  # JAX's message when it detects no cluster: one process
                raise
        except RuntimeError as error:
            if "before any JAX calls" not in str(error):  # the caller of this library uses JAX already: one process
                raise
    finally:
        connected.set()


def _bind_address(coordinator: str) -> str | None:
    """Returns the address at which process 0 listens: the coordinator's, if it is one of this machine.

    None means all interfaces, JAX's default. It is needed behind an address translation, where this machine does not
    have the address under which the others reach it.
    """
    host, _ = split_address(coordinator)
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return coordinator
    except OSError:
        return None


def _remind(connected: threading.Event, config: HostsConfig) -> None:
    """Prints from time to time that this host waits for others, because JAX waits silently.

    The missing host is the one whose log does not show this message.
    """
    began = time.monotonic()
    address = f" at {config.coordinator}" if config.coordinator else ""
    while not connected.wait(_REMIND_SECONDS):
        say(
            f"{socket.gethostname()}: waiting for the other hosts{address}, {time.monotonic() - began:.0f} s of "
            f"{config.start_within}",
            error=True,
        )


def _preemption_service() -> bool:
    """Returns whether JAX's preemption service handles SIGTERM, which it does when there are several processes."""
    from jax._src import distributed

    return distributed.global_state.preemption_sync_manager is not None


def _exit_all(
    name: str, error: BaseException, *, watchdog: Watchdog, notice: DeathNotice, config: HostsConfig
) -> NoReturn:
    """Prints the error, ends this process and thereby, through its watchdog, all others."""
    if is_runtime_failure(error):
        # Most likely another process died, which broke a collective. The error does not tell which one; the watchdog
        # does as soon as that process has been silent for `dead_after`, and then ends this process. If it does not,
        # the network or this host is at fault.
        time.sleep(config.dead_after + 10)
    watchdog.publish_failure(exit_code(error), f"failed: {one_line(error)}")
    notice.cancel()
    # Process 0 runs the service, so it stays until the others have read of the failure.
    _exit(name, error, linger=5 * watchdog.period)


def _exit(name: str, error: BaseException, *, linger: float) -> NoReturn:
    """Prints the error and ends this process after `linger` seconds, without JAX's shutdown."""
    described = is_expected(error) or is_runtime_failure(error) or isinstance(error, KeyboardInterrupt)
    if not described or os.environ.get("DEBERTA_JAX_TRACEBACK"):
        say("".join(traceback.format_exception(error)).rstrip(), error=True)
    code = exit_code(error)
    say(f"{name}: {one_line(error)}. Exit code {code}", error=True)
    time.sleep(linger)
    with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is a file on a full disk
        sys.stdout.flush()
    os._exit(code)
