"""Fixtures that the tests of several kinds of tasks share."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deberta_jax import Tokenizer

from ...support.published_archives import accepted_by_tfds, write_archives


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    """Returns a function that writes text, bytes or JSON to a file and returns its path."""

    def write(name: str, content: Any) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of small archives in their published form, and a folder for prepared sets."""
    manual = tmp_path_factory.mktemp("manual")
    write_archives(manual)
    return {"manual_dir": manual, "data_dir": tmp_path_factory.mktemp("data")}


@pytest.fixture
def fake_tfds(archives: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """The settings under which tensorflow_datasets prepares its sets from the small archives."""
    with accepted_by_tfds(archives["manual_dir"]):
        yield archives


@pytest.fixture(scope="session")
def tokenizer(small_model: Path) -> Tokenizer:
    return Tokenizer.from_folder(small_model)
