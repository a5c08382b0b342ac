"""Folders of other libraries through every command: see `tests.benchmarks.hub_folders`."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ..benchmarks.hub_folders import STEPS, take_through
from ..support import hub_folders

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.mark.parametrize("name", hub_folders.WRITERS)
def test_a_folder_works_in_every_command(
    tmp_path: Path, novel: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    hub_folders.write(name, novel / "tokenizer", tmp_path / name)
    results = take_through(tmp_path / name, tmp_path)
    assert list(results) == list(STEPS)
    assert not [f"{step}: {result}" for step, result in results.items() if result.startswith("failed")]
