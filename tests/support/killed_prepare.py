"""A preparation that is killed in one of its functions, and what it must lead to when it is repeated."""

import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax.train.data import prepare as prepare_module

from .paths import REPOSITORY

CHUNK_BYTES, SHARD_BYTES = 2000, 1000  # with which a small text makes several chunks and files
SETTINGS = {"sequence_length": 64, "boundary": "line", "held_out_fraction": 0.1}

# Where a process dies: module, function, and the number of the call.
MOMENTS = {
    "read": ("train.data.preparation.reading", "removing_rule", 30),
    "read, at the end": ("train.data.preparation.reading", "ReadGroup", 1),
    "select": ("train.data.preparation.selection", "_chunks", 1),
    "tokenize": ("train.data.preparation.tokenizing", "encode_documents", 3),
    "write": ("train.data.preparation.shards", "create_row_file", 2),
    "write, before the totals": ("train.data.preparation.shards", "ends_digest", 2),
    "check": ("train.data.prepare", "_check_splits", 1),
    "manifest": ("train.data.prepare", "write_manifest", 1),
    "move": ("train.data.prepare", "move_into_place", 1),
    "move, in the middle": ("train.data.corpus_folder", "_move_files", 1),
    "copy, in the middle": ("stores", "copy", 3),  # of a store, which cannot move files
}
_KILLED = """
import sys, os, importlib
from deberta_jax.train.data import prepare as prepare_module
from tests.support.killed_prepare import CHUNK_BYTES, SETTINGS, SHARD_BYTES
from tests.support.small_corpus import Words

text, folder, module, function, call, *wait = sys.argv[1:]
module = importlib.import_module("deberta_jax." + module)
original, calls = getattr(module, function), []

def die(*arguments, **keywords):
    calls.append(1)
    if len(calls) < int(call):
        return original(*arguments, **keywords)
    if function == "_move_files":
        source, target = arguments
        name = next(source.glob("train-*")).name
        (source / name).rename(target / name)
    print("ready", flush=True)
    if wait:
        sys.stdin.read()
    os.kill(os.getpid(), 9)

setattr(module, function, die)
prepare_module.CHUNK_BYTES, prepare_module.SHARD_BYTES = CHUNK_BYTES, SHARD_BYTES
prepare_module.prepare([text], Words(), folder, **SETTINGS)
"""


def killed_command(moment: str, text: Path, folder: Path | str, *words: str) -> list[str]:
    """A command, to run in the repository, which prints "ready" and dies; with "wait" it waits for input first.

    The folder may be an address.
    """
    return [sys.executable, "-c", _KILLED, str(text), str(folder), *map(str, MOMENTS[moment]), *words]


def killed_prepare(moment: str, text: Path, folder: Path | str) -> None:
    """Runs `killed_command`."""
    command = killed_command(moment, text, folder)
    assert subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False).returncode == -9


def use_small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the sizes of `killed_command` in this process."""
    monkeypatch.setattr(prepare_module, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", SHARD_BYTES)
