"""A thousand damaged or hostile model folders through `deberta-jax convert`: each refused in one line or loaded right.

Whatever happens to a file: no other kind of exception, no hang, no code of the file's run, no memory out of
proportion, no half-written result, and what is loaded equals what an independent reader finds.
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

import jax
import numpy as np
import pytest

from deberta_jax import DebertaConfig, checkpoint
from deberta_jax.convert import from_pytorch
from deberta_jax.convert.mapping import to_params
from deberta_jax.convert.pickle_reader import read_bin
from deberta_jax.convert.quirks import ConversionError, masked_lm_form
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

CASES, GROUPS = 1000, 20
SECONDS = 10
HEADROOM = 2 * 2**30  # bytes of address space above what the process has; Orbax's threads take most of it


@dataclasses.dataclass(frozen=True)
class Mutation:
    change: Callable[[Rng, Files], None]
    kinds: tuple[str, ...]  # in the names of the sources


def mutations(sentinel: Path) -> list[Mutation]:
    def plant_gadget(rng: Rng, files: Files) -> None:
        plant(rng, files, gadgets(sentinel))

    planting = (plant_gadget, plant_gadget, plant_bomb, zip_bomb, zip_doubles)
    return [
        *(Mutation(change, ("",)) for change in DAMAGE + CONTRADICTIONS),
        *(Mutation(change, ("safetensors", "v3 shards")) for change in (edit_header, break_header)),
        *(Mutation(change, ("bin",)) for change in planting),
        Mutation(edit_index, ("shards",)),
    ]


class Hang(BaseException):
    """So that nothing takes it for an error of the file."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """At most SECONDS of computing and HEADROOM.

    Computing is this thread's, so that neither a busy machine nor what other tests left running changes anything. What
    does not end by itself is stopped by the clock of the whole process, the only one that sends a signal.
    """

    def stop(*_):
        raise Hang(f"more than {10 * SECONDS} s of the whole process")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, hard))
    signal.setitimer(signal.ITIMER_PROF, 10 * SECONDS)
    began = time.thread_time()
    try:
        yield
        if time.thread_time() - began > SECONDS:
            raise Hang(f"more than {SECONDS} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (old, hard))
        signal.signal(signal.SIGPROF, signal.SIG_IGN)  # one that is on its way would end the process by default


def check_loaded(files: Files, config: DebertaConfig, params: dict) -> None:
    state = read_plainly(files)
    assert_same(params, to_params(state, masked_lm_form(state, config)))
    for name, value in json.loads(files["config.json"]).items():
        if name in ("vocab_size", "hidden_size", "num_hidden_layers", "layer_norm_eps", "hidden_dropout_prob"):
            assert getattr(config, name) == value, name


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("group", range(GROUPS))
def test_damaged_and_hostile_files(tmp_path, monkeypatch, group):
    monkeypatch.setitem(sys.modules, "torch", None)  # the old format is PyTorch's own affair
    sentinel = tmp_path / "sentinel"
    whole, kinds = sources(), mutations(sentinel)
    saved, save = [], checkpoint.save_pretrained
    monkeypatch.setattr(checkpoint, "save_pretrained", lambda *given: (saved.append(given), save(*given)))
    failures, loaded, refused = [], 0, 0
    for case in range(group, CASES, GROUPS):
        rng = np.random.default_rng(case)
        mutation = kinds[int(rng.integers(len(kinds)))]
        source = pick(rng, [name for name in whole if any(kind in name for kind in mutation.kinds)])
        files = dict(whole[source])
        mutation.change(rng, files)
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
            clear = 20 <= len(message) <= 1000 and message.isprintable()
            if not clear or "MemoryError" in message or destination.exists():
                failures.append(f"case {case}: {mutation.change.__name__} of {source}: unclear: {message[:300]!r}")
            refused += 1
        except (Exception, Hang) as error:
            failures.append(f"case {case}: {mutation.change.__name__} of {source}: {type(error).__name__}: {error}")
        if sentinel.exists():
            failures.append(f"case {case}: {mutation.change.__name__} of {source}: ran what was in the file")
            sentinel.unlink()
    assert not failures, "\n".join(failures)
    assert loaded
    assert refused > loaded


def test_untouched_files_load():
    """What the mutations start from, and the independent reader, are in order."""
    for files in sources().values():
        state = read_plainly(files)
        config = masked_lm_form(state, DebertaConfig.from_json(json.loads(files["config.json"])))
        assert {"deberta", MLM} <= to_params(state, config).keys()


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_every_planted_pickle_is_refused_or_does_nothing(tmp_path):
    sentinel, path = tmp_path / "sentinel", tmp_path / "weights.bin"
    whole = bin_bytes({"x": np.arange(4, dtype=np.float32)})
    program = zipfile.ZipFile(io.BytesIO(whole)).read("archive/data.pkl")
    messages: list[str] = []
    for piece in gadgets(sentinel) + bombs():
        for change in planted(program, piece):
            path.write_bytes(rezip(whole, lambda members, change=change: members.update({"archive/data.pkl": change})))
            with bounded():
                try:
                    state = read_bin(path)
                    assert "x" not in state or np.array_equal(state["x"], np.arange(4))
                except ConversionError as error:
                    messages.append(str(error))
            assert not sentinel.exists(), change
    assert all(message.isprintable() and len(message) < 1000 for message in messages)
    assert "MemoryError" not in "".join(messages)
    assert len(messages) >= 4 * len(gadgets(sentinel)) - 20  # attributes of a table are let pass, and dropped


@pytest.mark.filterwarnings("ignore")  # the files that gadgets open
def test_the_gadgets_work(tmp_path, monkeypatch):
    """Python's own reader would run what is planted; else the thousand cases would prove nothing."""
    sentinel, ran = tmp_path / "sentinel", 0
    monkeypatch.setitem(sys.modules, "antigravity", None)
    for gadget in gadgets(sentinel):
        with contextlib.suppress(Exception):
            pickle.loads(b"\x80\x04" + gadget + b".")
        ran += sentinel.exists()
        sentinel.unlink(missing_ok=True)
    assert ran >= 20
