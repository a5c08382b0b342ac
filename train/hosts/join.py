"""Several hosts as one run: how they find each other, that they agree, and how all of them end when one does.

`with join(config) as hosts:` around all of a command's work. JAX's own runtime is the engine (`jax.distributed`); what
is added is what it leaves out: a check that all hosts run the same code with the same settings, a watchdog that names a
lost or stuck host, one exit code for all of them (`exits`), and a stop that all of them make after the same step.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax.errors import UserError

from ..configs import FinetuneConfig, HostsConfig, PretrainConfig
from .exit_codes import DONE, RESTART, StoppedError, exit_code, from_runtime
from .phases import Activity
from .processes import Coordinator, coordinator
from .watchdog import LastWords, Watchdog

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "numpy", "optax", "orbax-checkpoint", "grain")
_AGREE_WITHIN_MS = 300_000


class Hosts:
    """The processes of a run, and what this one does among them.

    Attributes:
      first: this is process 0, which alone prints, logs and writes what is written once.
      activity: what this process is doing; the loop keeps it up to date.
    """

    def __init__(self, *, max_seconds: float | None = None) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self.first = self.index == 0
        self.activity = Activity()
        self._max_seconds = max_seconds
        self._signaled = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM asks for a stop instead of ending the process. (Of several processes JAX itself takes it.)"""
        if _preemption_service() or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: object) -> None:
            self._signaled = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop_requested(self, step: int) -> bool:
        """Whether to save and stop after this step: the same answer on every process. Call it once every step."""
        if self.first and not self._signaled and self._out_of_time():
            # The way to stop all processes at one step is the one that a notice of preemption takes.
            self._signaled = True
            if _preemption_service():
                os.kill(os.getpid(), signal.SIGTERM)
        if _preemption_service():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signaled

    def stopped(self, step: int) -> StoppedError:
        """What to raise once all is saved; collective."""
        out_of_time = self._out_of_time()
        if self.count > 1:
            out_of_time = bool(multihost_utils.broadcast_one_to_all(np.asarray(out_of_time)))
        again = "the same command goes on from there"
        if out_of_time:
            return StoppedError(
                f"stopped after --max-seconds {self._max_seconds:g}: step {step} is saved, {again}", DONE
            )
        return StoppedError(f"preempted (SIGTERM): step {step} is saved, {again}; exit code {RESTART}", RESTART)

    def _out_of_time(self) -> bool:
        return self._max_seconds is not None and self.activity.elapsed >= self._max_seconds


@contextlib.contextmanager
def join(config: PretrainConfig | FinetuneConfig) -> Iterator[Hosts]:
    """Waits for all processes of the run, checks that they agree, and watches over them.

    With one process nothing but `Hosts` comes of it, and errors pass through. With several, an error that leaves the
    block on one of them is printed with the host's name and ends ALL processes (`os._exit`), with the exit code that
    suits it: an exception on one host would otherwise leave the others waiting in a collective.

    Raises:
      ValueError: a process that differs from the others in settings, code, versions or clock; raised on all of them.
    """
    _start_runtime(config.hosts)
    _keep_programs(config)
    hosts = Hosts(max_seconds=config.max_seconds)
    if hosts.count == 1:
        yield hosts
        return
    client = coordinator()
    try:
        names = agree(client, hosts, _facts(config), clock_within=config.hosts.clock_within)
    except Exception as error:
        _leave(f"process {hosts.index} on {socket.gethostname()}", error)
    if hosts.first:
        print("\n".join(["processes:", *(f"  {name}" for name in names)]), file=sys.stderr, flush=True)
    lost = f", or aborted by JAX because it lost {names[0]}, which coordinates" if hosts.index else ""
    last_words = LastWords(f"{names[hosts.index]} died without a word: killed, or out of memory{lost}")

    def leave(code: int) -> None:
        last_words.unsaid()
        os._exit(code)

    watchdog = Watchdog(
        client, index=hosts.index, names=names, activity=hosts.activity, config=config.hosts, leave=leave
    )
    watchdog.start()
    try:
        yield hosts
    except StoppedError:
        last_words.unsaid()
        watchdog.stop()
        raise
    except BaseException as error:
        _leave(names[hosts.index], error, watchdog=watchdog, last_words=last_words, config=config.hosts)
    last_words.unsaid()
    watchdog.stop()


def agree(client: Coordinator, hosts: Hosts, facts: dict[str, Any], *, clock_within: float) -> list[str]:
    """Compares what must be the same on all processes. Returns what to call each of them in messages.

    Args:
      client: JAX's, of its coordination service.
      facts: nested dict of JSON values.

    Raises:
      ValueError: a process that differs, by name, and in what; the same error on every process.
    """
    client.wait_at_barrier("deberta_jax/agree", _AGREE_WITHIN_MS)  # all clocks are read at one time
    mine = {"host": socket.gethostname(), "clock": time.time(), "facts": facts}
    client.key_value_set(f"deberta_jax/facts/{hosts.index}", json.dumps(mine, default=str))
    theirs = [
        json.loads(client.blocking_key_value_get(f"deberta_jax/facts/{index}", _AGREE_WITHIN_MS))
        for index in range(hosts.count)
    ]
    names = [f"process {index} on {one['host']}" for index, one in enumerate(theirs)]
    clock = statistics.median(one["clock"] for one in theirs)
    flat = [dict(_flat(one["facts"])) for one in theirs]
    usual = {
        key: collections.Counter(one.get(key, "absent") for one in flat).most_common(1)[0][0]
        for key in sorted({key for one in flat for key in one})
    }
    complaints = []
    for name, one, own in zip(names, theirs, flat, strict=True):
        found = [
            f"{key} is {own.get(key, 'absent')}, elsewhere {value}"
            for key, value in usual.items()
            if own.get(key, "absent") != value
        ]
        if abs(one["clock"] - clock) > clock_within:
            found.append(f"its clock differs by {one['clock'] - clock:+.0f} s (at most {clock_within:g} allowed)")
        if found:
            complaints.append(f"{name}: {', '.join(found[:5])}")
    if complaints:
        raise UserError(
            f"the hosts of this run differ; nothing was trained. {'; '.join(complaints)}. Install the same wheel, give "
            f"the same command and let the clocks be set (NTP) on all of them"
        )
    return names


def _flat(facts: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(facts, dict):
        for key, value in facts.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, json.dumps(facts)


def _facts(config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    del settings["hosts"]
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "settings": json.loads(json.dumps(settings, default=str)),
        "version": versions,
        "code of deberta_jax": code_fingerprint(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
        "devices": jax.local_device_count(),
    }


@functools.cache
def code_fingerprint() -> str:
    """Of the Python files that this library consists of, wherever they are installed."""
    import deberta_jax

    folders = {Path(deberta_jax.__file__).parent, Path(__file__).parents[1]}
    files = sorted((path for folder in folders for path in folder.rglob("*.py")), key=lambda path: path.parts[-2:])
    digest = hashlib.sha256()
    for path in files:
        digest.update("/".join(path.parts[-2:]).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _start_runtime(config: HostsConfig) -> None:
    """Connects the processes, where there are several; once in the life of a process."""
    if jax.distributed.is_initialized():
        return
    settings: dict[str, Any] = {
        "initialization_timeout": config.start_within,
        # A backstop behind the watchdog, which names the host: this one only has a number, and aborts.
        "heartbeat_timeout_seconds": max(100, int(3 * config.dead_after)),
    }
    waiting = threading.Event()
    reminder = threading.Thread(target=_remind, args=(waiting, config), daemon=True)
    reminder.start()
    try:
        if config.coordinator is not None:
            jax.distributed.initialize(config.coordinator, config.count, config.index, **settings)
            return
        try:
            jax.distributed.initialize(**settings)
        except ValueError as error:
            if "coordinator_address" not in str(error):  # what JAX says where it finds no cluster: one process
                raise
        except RuntimeError as error:
            if "before any JAX calls" not in str(error):  # JAX is in use already: its caller has decided on this
                raise
    finally:
        waiting.set()


def _remind(done: threading.Event, config: HostsConfig) -> None:
    """JAX waits in silence. Who is missing shows in the logs of the hosts: it is the one that does not say this."""
    began = time.monotonic()
    while not done.wait(20):
        where = f" at {config.coordinator}" if config.coordinator else ""
        print(
            f"{socket.gethostname()}: waiting for the other hosts{where}, {time.monotonic() - began:.0f} s of "
            f"{config.start_within}",
            file=sys.stderr,
            flush=True,
        )


def _keep_programs(config: PretrainConfig | FinetuneConfig) -> None:
    folder = config.compilation_cache
    if folder is None and jax.default_backend() == "tpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = config.output / "compiled"
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _preemption_service() -> bool:
    from jax._src import distributed

    return distributed.global_state.preemption_sync_manager is not None


def _leave(
    name: str,
    error: BaseException,
    *,
    watchdog: Watchdog | None = None,
    last_words: LastWords | None = None,
    config: HostsConfig | None = None,
) -> NoReturn:
    """Says what happened on this process and ends it, past JAX's shutdown, which would wait for the others."""
    code = exit_code(error)
    if config is not None and from_runtime(error):
        # Most likely another process is gone, and the collective broke. Who it was shows when its silence is long
        # enough; the watchdog then ends this process. If all are well it is the network, or this host.
        time.sleep(config.dead_after + 10)
    expected = isinstance(error, (ValueError, OSError, ImportError, KeyboardInterrupt, jax.errors.JaxRuntimeError))
    text = " ".join(str(error).split()) or type(error).__name__
    if not expected or os.environ.get("DEBERTA_JAX_TRACEBACK"):
        traceback.print_exception(error)
    if watchdog is not None:
        with contextlib.suppress(Exception):  # the service may be what failed
            watchdog.fail(code, f"failed: {text}")
    print(f"{name}: {text}. Exit code {code}", file=sys.stderr, flush=True)
    if last_words is not None:
        last_words.unsaid()
    # Process 0 serves the others: they read of the failure before it goes.
    time.sleep(1.0 if watchdog is None else 5 * watchdog.period)
    sys.stdout.flush()
    os._exit(code)
