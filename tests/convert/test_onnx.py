"""ONNX by way of transformers: the code in docs/serving.md, compared with this library at three shapes."""

from pathlib import Path

import numpy as np
import pytest

from deberta_jax import DebertaForSequenceClassification
from deberta_jax.config import DebertaConfig
from deberta_jax.convert import save_pytorch
from deberta_jax.convert.mapping import to_params

from ..support.documents import blocks
from ..support.paths import REPOSITORY
from ..support.pytorch_files import V1, V3, random_state


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # of torch.onnx, at its own code
@pytest.mark.parametrize("config", [V3, V1], ids=["v3", "v1"])
def test_the_recipe_equals_this_library(tmp_path: Path, config: DebertaConfig) -> None:
    for package in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    config = config.replace(num_labels=3)
    params = to_params(random_state(config, "pooler", "classifier"), config)
    save_pytorch(tmp_path, config, params)
    text = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8").partition("## ONNX")[2]
    names: dict = {}
    exec("".join(blocks(text, "python")).replace('"exported', f'"{tmp_path}'), names)
    rng, model = np.random.default_rng(0), DebertaForSequenceClassification(config)
    assert names["logits"].shape == (2, 3)
    for batch, length in ((1, 5), (2, 16), (4, 32)):
        ids, mask = rng.integers(5, 50, (batch, length)), np.ones((batch, length), np.int64)
        mask[0, -2:] = 0
        (logits,) = names["session"].run(None, {"input_ids": ids, "attention_mask": mask})
        expected = model.apply({"params": params}, ids, mask).logits  # type: ignore[union-attr]
        np.testing.assert_allclose(logits, expected, atol=1e-4)
