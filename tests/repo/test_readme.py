"""Tests that documented code runs, documented options exist and links between documents lead to files."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from deberta_jax import Deberta
from deberta_jax.__main__ import COMMANDS, main
from deberta_jax.convert import save_pytorch

from ..support.paths import REPOSITORY
from ..support.small_models import SMALL

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def documented_commands() -> list[tuple[str, list[str]]]:
    """Returns each `deberta-jax COMMAND ...` line in the code blocks of the documents, with its options."""
    commands = []
    for document in DOCUMENTS:
        blocks = document.read_text(encoding="utf-8").split("```")[1::2]  # every second part is inside a fence
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        for words in (shlex.split(line, comments=True) for line in lines if line.startswith("deberta-jax ")):
            commands.append((words[1], [word for word in words if word.startswith("--")]))
    return commands


def test_research_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    snippet = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    params = jax.jit(Deberta(SMALL).init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    save_pytorch(tmp_path / "microsoft" / "deberta-v3-small", SMALL, {"deberta": params})
    ids = jnp.arange(5, 17)[None]
    names: dict = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    exec(snippet, names)
    assert names["out"].last_hidden_state.shape == (1, 12, 32)
    assert len(names["out"].hidden_states) == SMALL.num_hidden_layers + 1
    assert names["config"] == SMALL
    assert (tmp_path / "for-transformers" / "model.safetensors").is_file()


def test_models_work_as_nnx_modules() -> None:
    ids = jnp.arange(5, 17)[None]
    model = nnx.bridge.ToNNX(Deberta(SMALL), rngs=nnx.Rngs(0))
    model.lazy_init(ids)
    assert model(ids).last_hidden_state.shape == (1, 12, 32)


def test_documented_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    documented: dict[str, set[str]] = {}
    for command, options in documented_commands():
        documented.setdefault(command, set()).update(options)
    assert documented.keys() >= {"tokenizer", "pretrain", "finetune", "convert", "compile-ahead"}
    assert documented.keys() <= COMMANDS.keys()
    for command, options in documented.items():
        if options and COMMANDS[command][1] is not None:
            with pytest.raises(SystemExit):
                main([command, "--help-all"])
            known = set(re.findall(r"--[a-z0-9.-]+", capsys.readouterr().out))
            assert options <= known, f"{command} has no {', '.join(sorted(options - known))}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
