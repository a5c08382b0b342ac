"""Checkpoint folders that several test files use."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.train.checkpoints.checkpointer import Checkpointer

from ...support.checkpoint_states import IDENTITY, make_state


@pytest.fixture
def log() -> list[str]:
    """Receives what the checkpointers of a test log."""
    return []


@pytest.fixture
def open_run(tmp_path: Path, log: list[str]) -> Iterator[Callable[..., Checkpointer]]:
    """Opens the folder `run` (default), as often as a test wants, and closes what the test leaves open."""
    with contextlib.ExitStack() as opened:

        def open_folder(folder: Path | None = None, **changes: Any) -> Checkpointer:
            settings: dict[str, Any] = {"keep": 3, "identity": IDENTITY, "log": log.append, "patience": 0, **changes}
            checkpointer = Checkpointer(folder or tmp_path / "run", **settings)
            opened.callback(checkpointer.close)
            return checkpointer

        yield open_folder


@pytest.fixture(scope="module")
def written_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with steps 1 (every leaf 0) and 2 (every leaf 1)."""
    folder = tmp_path_factory.mktemp("written") / "run"
    with Checkpointer(folder, keep=3, identity=IDENTITY) as checkpointer:
        checkpointer.save(1, make_state(0), {"next_index": 1})
        checkpointer.save(2, make_state(1), {"next_index": 2})
    return folder


@pytest.fixture
def two_steps(written_run: Path, tmp_path: Path) -> Path:
    """A copy of `written_run` as `run`, for a test that damages it."""
    return Path(shutil.copytree(written_run, tmp_path / "run"))
