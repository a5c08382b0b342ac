"""Stops of a run, and the settings of its processes, on one process."""

import os
import signal
import threading
from pathlib import Path

import jax
import pytest

from deberta_jax.train.configs import HostsConfig, PretrainConfig
from deberta_jax.train.hosts import join, phases
from deberta_jax.train.hosts.compilation_cache import enable_compilation_cache
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.hosts.join import Hosts, join_run

from ...support.fake_time import fake_time


def test_a_signal_requests_a_stop_and_the_old_handler_is_restored() -> None:
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


def test_the_time_limit_requests_a_stop_and_is_not_a_failure(monkeypatch) -> None:
    clock = fake_time(monkeypatch, phases)
    hosts = Hosts(max_seconds=60)
    assert not hosts.stop_requested(1)
    clock.now += 60
    assert hosts.stop_requested(2)
    assert hosts.stopped(2).code == 0
    assert "stopped after --max-seconds 60: step 2 is saved" in str(hosts.stopped(2))


def join_and_fail(config: PretrainConfig) -> None:
    with join_run(config) as hosts:
        assert (hosts.index, hosts.count, hosts.first) == (0, 1, True)
        raise KeyError("a failure of training")


def test_one_process_joins_alone_and_its_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a failure of training"):
        join_and_fail(PretrainConfig(output=tmp_path, tokenizer=tmp_path))


def test_a_host_that_waits_for_others_says_so(capsys, monkeypatch) -> None:
    connected = threading.Event()
    waits = iter([False, False, True])
    monkeypatch.setattr(connected, "wait", lambda _: next(waits))
    join._remind(connected, HostsConfig(coordinator="a:1", count=2, index=0, start_within=600))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "waiting for the other hosts at a:1, " in lines[0]
    assert lines[0].endswith(" s of 600")


def test_compiled_programs_are_kept_where_the_settings_say(tmp_path: Path, monkeypatch) -> None:
    folders = {}
    monkeypatch.setattr(jax.config, "update", folders.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    config = PretrainConfig(output=tmp_path, tokenizer=tmp_path)
    enable_compilation_cache(config)
    assert not folders
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    enable_compilation_cache(config)
    assert folders == {"jax_compilation_cache_dir": str(tmp_path / "compiled")}
    enable_compilation_cache(PretrainConfig(output=tmp_path, tokenizer=tmp_path, compilation_cache=tmp_path / "kept"))
    assert folders == {"jax_compilation_cache_dir": str(tmp_path / "kept")}


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
