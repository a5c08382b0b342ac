"""The research snippet of the README runs as it stands there, on a folder of PyTorch files."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from deberta_jax import Deberta
from deberta_jax.convert import save_pytorch

from ..support.paths import REPOSITORY
from ..support.small_models import SMALL

README = REPOSITORY / "README.md"


def test_the_research_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = next(block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    monkeypatch.chdir(tmp_path)
    params = jax.jit(Deberta(SMALL).init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    save_pytorch(tmp_path / "deberta-v3-small", SMALL, {"deberta": params})
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
