"""Stops of a run, and the settings of its processes, on one process."""

import errno
import os
import signal
import threading
from pathlib import Path

import jax
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.checkpoints.storage_faults import StorageDownError
from deberta_jax.train.configs import HostsConfig, PretrainConfig
from deberta_jax.train.hosts import join, phases
from deberta_jax.train.hosts.compilation_cache import enable_compilation_cache
from deberta_jax.train.hosts.exit_codes import RestartError, StoppedError
from deberta_jax.train.hosts.join import Hosts, join_run

from ...support.fake_time import fake_time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_requests_a_stop_and_the_old_handler_is_restored(number: signal.Signals) -> None:
    hosts, original = Hosts(), signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with hosts.listening():
            assert not hosts.stop_requested()
            os.kill(os.getpid(), number)
            assert hosts.stop_requested()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, original)
    messages: list[str] = []
    stopped = hosts.stopped(2, log=messages.append)
    assert messages == [str(stopped)]
    assert isinstance(stopped, StoppedError)
    assert stopped.code == 42
    assert f"preempted ({number.name}): step 2 is saved" in str(stopped)


def test_nohup_is_respected() -> None:
    hosts, before = Hosts(), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hosts.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not hosts.stop_requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_time_limit_requests_a_stop_and_is_not_a_failure(monkeypatch) -> None:
    clock = fake_time(monkeypatch, phases)
    hosts = Hosts(max_seconds=60)
    assert not hosts.stop_requested()
    clock.now += 60
    assert hosts.stop_requested()
    stopped = hosts.stopped(2, log=lambda _: None)
    assert stopped.code == 0
    assert "stopped after --max-seconds 60: step 2 is saved" in str(stopped)


def test_a_stop_after_the_last_step_ends_what_follows_it(monkeypatch) -> None:
    clock, hosts, messages = fake_time(monkeypatch, phases), Hosts(), []
    hosts.phases.enter("finish")
    clock.now += 5
    hosts.check_stop()
    assert hosts.phases.since == clock.now  # a long prediction does not count as a phase that hangs

    def predict() -> None:
        with hosts.finishing(7, log=messages.append):
            os.kill(os.getpid(), signal.SIGTERM)
            hosts.check_stop()

    with pytest.raises(StoppedError, match=r"preempted \(SIGTERM\): step 7 is saved") as stopped:
        predict()
    assert stopped.value.code == 42
    assert messages == [str(stopped.value)]


def join_and_fail(config: PretrainConfig) -> None:
    with join_run(config) as hosts:
        assert (hosts.index, hosts.count, hosts.first) == (0, 1, True)
        raise KeyError("a failure of training")


def test_one_process_joins_alone_and_its_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a failure of training"):
        join_and_fail(PretrainConfig(output=tmp_path, tokenizer=tmp_path))


def fail(config: PretrainConfig, error: Exception) -> None:
    with join_run(config):
        raise error


def test_a_failure_of_storage_asks_for_another_start(tmp_path: Path) -> None:
    config = PretrainConfig(output=tmp_path, tokenizer=tmp_path)
    with pytest.raises(RestartError, match=r"Input/output error.*Run the same command again") as caught:
        fail(config, OSError(errno.EIO, "Input/output error"))
    assert caught.value.exit_status == 42
    with pytest.raises(StorageDownError):  # asks already
        fail(config, StorageDownError("storage is down"))


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    config = PretrainConfig(output=tmp_path / "run", tokenizer=tmp_path)
    with join_run(config):
        assert (tmp_path / "run" / "run.lock").is_file()
    assert list((tmp_path / "run").iterdir()) == []


def test_64_bits_are_refused(tmp_path: Path) -> None:
    with jax.enable_x64(True), pytest.raises(UserError, match="unset JAX_ENABLE_X64"):
        join_and_fail(PretrainConfig(output=tmp_path, tokenizer=tmp_path))


@pytest.mark.parametrize(
    ("coordinator", "address"),
    [
        ("127.0.0.1:1234", "127.0.0.1:1234"),
        ("localhost:1234", "localhost:1234"),
        ("192.0.2.1:1234", None),  # TEST-NET, never an address of this machine
    ],
)
def test_the_coordinator_listens_on_its_own_address(coordinator: str, address: str | None) -> None:
    assert join._bind_address(coordinator) == address


def test_a_host_that_waits_for_others_says_so(capsys, monkeypatch) -> None:
    connected = threading.Event()
    waits = iter([False, False, True])
    monkeypatch.setattr(connected, "wait", lambda _: next(waits))
    join._remind(connected, HostsConfig(coordinator="a:1", count=2, index=0, start_within=600))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "waiting for the other hosts at a:1, " in lines[0]
    assert lines[0].endswith(" s of 600")


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_compiled_programs_are_kept_where_the_settings_say(tmp_path: Path, monkeypatch, backend: str) -> None:
    folders = {}
    monkeypatch.setattr(jax.config, "update", folders.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    config = PretrainConfig(output=tmp_path, tokenizer=tmp_path)
    enable_compilation_cache(config)
    assert not folders
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    enable_compilation_cache(config)
    every = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    assert folders == {"jax_compilation_cache_dir": str(tmp_path / "compiled"), **every}
    enable_compilation_cache(PretrainConfig(output=tmp_path, tokenizer=tmp_path, compilation_cache=tmp_path / "kept"))
    assert folders == {"jax_compilation_cache_dir": str(tmp_path / "kept"), **every}


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_the_environment_takes_precedence_over_the_default_cache(tmp_path: Path, monkeypatch, backend: str) -> None:
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    enable_compilation_cache(PretrainConfig(output=tmp_path, tokenizer=tmp_path))
    assert not settings
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    enable_compilation_cache(PretrainConfig(output=tmp_path, tokenizer=tmp_path))
    assert settings == {"jax_compilation_cache_dir": str(tmp_path / "compiled")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "a:1"}, "coordinator given; give coordinator, count and index, or none"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "index is 2; it must be 0 to 1"),
        ({"dead_after": 0}, "dead_after is 0; it must be above 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HostsConfig(**settings)
