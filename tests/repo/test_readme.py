"""Tests that documented code runs, documented options exist and links between documents lead to files."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.__main__ import COMMANDS, main

from ..support.documents import DOCUMENTS, README, blocks, commands
from ..support.small_models import SMALL


def test_research_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = blocks(README, "python")
    assert "save_pytorch(" in snippet
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)
    assert names["out"].last_hidden_state.shape == (2, names["batch"].input_ids.shape[1], 192)
    assert len(names["out"].hidden_states) == len(names["out"].attentions) + 1 == 7
    assert names["config"] == DebertaConfig.named("deberta-v3-tiny")
    config, params = names["load_pytorch"](tmp_path / "for-transformers")
    assert config == names["config"]
    jax.tree.map(np.testing.assert_array_equal, params, names["params"])


def test_models_work_as_nnx_modules() -> None:
    ids = jnp.arange(5, 17)[None]
    model = nnx.bridge.ToNNX(Deberta(SMALL), rngs=nnx.Rngs(0))
    model.lazy_init(ids)
    assert model(ids).last_hidden_state.shape == (1, 12, 32)


def test_documented_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    documented: dict[str, set[str]] = {}
    for command, *words in (words for document in DOCUMENTS for words in commands(document)):
        documented.setdefault(command, set()).update(word for word in words if word.startswith("--"))
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
