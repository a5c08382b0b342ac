"""Executes the notebooks, each in a kernel of its own. Their committed outputs are those of such a run."""

import os
import sys
from pathlib import Path

import pytest

from ..support.paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "needs the extra `docs`, which `make test-slow` installs"
    nbclient, nbformat = (pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason=reason)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # for its shell cells
    monkeypatch.delenv("XLA_FLAGS")  # one device, as its readers have
    notebook = nbformat.read(path, as_version=4)
    committed = [kinds_of_output(cell) for cell in code_cells(notebook)]
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert [kinds_of_output(cell) for cell in code_cells(notebook)] == committed


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds_of_output(cell) -> list[str]:
    """Printed text is one output: how many pieces the kernel sends it in is chance. Warnings on stderr are left out."""
    kinds: list[str] = []
    for output in cell.outputs:
        if output.get("name") != "stderr" and not (output.output_type == "stream" and kinds[-1:] == ["stream"]):
            kinds.append(output.output_type)
    return kinds


def test_there_are_three_notebooks_without_paths_of_a_machine() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert str(REPOSITORY) not in text
        assert '"traceback"' not in text
