"""Damaged and hostile model folders through `deberta-jax convert`: each is refused in one line or loaded correctly.

For every folder: no other kind of exception, no unbounded time or memory, no code of the file is run, no incomplete
result is written, and what is loaded equals what an independent reader returns. `make test` tries a tenth of the
thousand folders, and the slow tests try the others.
"""

import contextlib
import dataclasses
import io
import json
import pickle
import resource
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import DebertaConfig, checkpoint
from deberta_jax.convert import ConversionError, from_pytorch
from deberta_jax.convert.mapping import to_params
from deberta_jax.convert.pickle_reader import read_bin
from deberta_jax.convert.quirks import adapt_heads
from tests.support.fuzz_cases import (
    CONTRADICTIONS,
    DAMAGE,
    Files,
    Rng,
    break_header,
    edit_header,
    edit_index,
    pick,
    read_plainly,
    sources,
)
from tests.support.fuzz_pickles import bombs, gadgets, plant, plant_bomb, planted, rezip, zip_bomb, zip_doubles
from tests.support.pytorch_files import MLM, assert_same, bin_bytes

CASES, GROUPS, FAST_GROUPS = 1000, 20, 2
SECONDS = 10  # of computing in one case
HEADROOM = 2 * 2**30  # bytes of address space beyond what the process has; Orbax's threads take most of it
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A change of a folder, and the sources it applies to: those whose names contain one of `kinds`."""

    change: Callable[[Rng, Files], None]
    kinds: tuple[str, ...]


def mutations(sentinel: Path) -> list[Mutation]:
    """Returns all mutations; those that plant code try to create the file `sentinel`."""

    def plant_gadget(rng: Rng, files: Files) -> None:
        plant(rng, files, gadgets(sentinel))

    planting = (plant_gadget, plant_gadget, plant_bomb, zip_bomb, zip_doubles)
    return [
        *(Mutation(change, ("",)) for change in DAMAGE + CONTRADICTIONS),
        *(Mutation(change, ("safetensors", "v3 shards")) for change in (edit_header, break_header)),
        *(Mutation(change, ("bin",)) for change in planting),
        Mutation(edit_index, ("shards",)),
    ]


class ComputesTooLongError(BaseException):
    """A case exceeded SECONDS. Not an Exception, so that the code under test cannot mistake it for a damaged file."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Limits a block to SECONDS of CPU time of this thread and to HEADROOM bytes of memory.

    Only the CPU time of this thread counts: neither a busy machine nor threads that other tests started change it. A
    timer of the process's CPU time wakes the check once a second, so that it also ends an endless loop.
    """
    started, active = time.thread_time(), True

    def check(*_: Any) -> None:
        if active and time.thread_time() - started > SECONDS:
            raise ComputesTooLongError(f"more than {SECONDS} s of CPU time")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old_limit, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    signal.signal(signal.SIGPROF, check)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, hard_limit))
    signal.setitimer(signal.ITIMER_PROF, 1, 1)
    try:
        yield
        check()
    finally:
        active = False  # a signal that is still pending must not raise outside the block
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (old_limit, hard_limit))
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # the default action would end the process


def check_loaded(files: Files, config: DebertaConfig, params: dict[str, Any]) -> None:
    """Asserts that parameters and configuration are those that an independent reader finds in the files."""
    state = read_plainly(files)
    assert_same(params, to_params(state, adapt_heads(config, state)))
    for name, value in json.loads(files["config.json"]).items():
        if name in ("vocab_size", "hidden_size", "num_hidden_layers", "layer_norm_eps", "hidden_dropout_prob"):
            assert getattr(config, name) == value, name


@linux_only
@pytest.mark.parametrize(
    "group",
    [pytest.param(group, marks=[pytest.mark.slow] if group >= FAST_GROUPS else []) for group in range(GROUPS)],
)
def test_damaged_and_hostile_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # PyTorch itself would read the old format
    sentinel = tmp_path / "sentinel"
    originals, kinds = sources(), mutations(sentinel)
    saved, save = [], checkpoint.save_pretrained
    monkeypatch.setattr(
        checkpoint, "save_pretrained", lambda *args, **options: (saved.append(args), save(*args, **options))
    )
    failures, loaded, refused = [], 0, 0
    for case in range(group, CASES, GROUPS):
        rng = np.random.default_rng(case)
        mutation = kinds[int(rng.integers(len(kinds)))]
        source = pick(rng, [name for name in originals if any(kind in name for kind in mutation.kinds)])
        files = dict(originals[source])
        mutation.change(rng, files)
        label = f"case {case}: {mutation.change.__name__} of {source}"
        folder, destination = tmp_path / f"source{case}", tmp_path / f"destination{case}"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        saved.clear()
        try:
            with bounded():
                from_pytorch.main(from_pytorch.ConvertConfig(source=str(folder), destination=destination))
            check_loaded(files, *saved[0][1:])
            config, params = checkpoint.load_pretrained(destination)
            assert config == saved[0][1]
            assert_same(jax.device_get(params), saved[0][2])
            loaded += 1
        except (ValueError, OSError) as error:
            message = str(error)
            is_clear = 20 <= len(message) <= 1000 and message.isprintable()
            if not is_clear or "MemoryError" in message or destination.exists():
                failures.append(f"{label}: unclear: {message[:300]!r}")
            refused += 1
        except (Exception, ComputesTooLongError) as error:
            failures.append(f"{label}: {type(error).__name__}: {error}")
        if sentinel.exists():
            failures.append(f"{label}: code in the file was run")
            sentinel.unlink()
    assert not failures, "\n".join(failures)
    assert loaded
    assert refused > loaded


def test_unchanged_folders_load() -> None:
    """The folders that mutations start from, and the independent reader, are correct."""
    for files in sources().values():
        state = read_plainly(files)
        config = adapt_heads(DebertaConfig.from_json(json.loads(files["config.json"])), state)
        assert {"deberta", MLM} <= to_params(state, config).keys()


@linux_only
@pytest.mark.parametrize("every_place", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_planted_pickles_are_refused_or_harmless(tmp_path: Path, every_place: bool) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "weights.bin"
    original = bin_bytes({"x": np.arange(4, dtype=np.float32)})
    program = zipfile.ZipFile(io.BytesIO(original)).read("archive/data.pkl")
    messages: list[str] = []
    pieces = gadgets(sentinel) + bombs()
    for i, piece in enumerate(pieces):
        programs = planted(program, piece)
        for planted_program in programs if every_place else [programs[i % len(programs)]]:
            path.write_bytes(rezip(original, {"archive/data.pkl": planted_program}))
            with bounded():
                try:
                    state = read_bin(path)
                    assert "x" not in state or np.array_equal(state["x"], np.arange(4))
                except ConversionError as error:
                    messages.append(str(error))
            assert not sentinel.exists(), planted_program
    assert all(message.isprintable() and len(message) < 1000 for message in messages)
    assert "MemoryError" not in "".join(messages)
    # The others set attributes of a table, which are dropped.
    assert len(messages) >= (4 if every_place else 1) * len(gadgets(sentinel)) - 20


@pytest.mark.filterwarnings("ignore")  # about files that gadgets open
def test_gadgets_run_in_the_pickle_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own reader runs what is planted; otherwise the other tests would prove nothing."""
    sentinel, count = tmp_path / "sentinel", 0
    monkeypatch.setitem(sys.modules, "antigravity", None)
    for gadget in gadgets(sentinel):
        with contextlib.suppress(Exception):
            pickle.loads(b"\x80\x04" + gadget + b".")
        count += sentinel.exists()
        sentinel.unlink(missing_ok=True)
    assert count >= 20


@linux_only
def test_endless_loop_fails_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.5)

    def loop_forever() -> None:
        with bounded():
            while True:
                pass

    with pytest.raises(ComputesTooLongError):
        loop_forever()
