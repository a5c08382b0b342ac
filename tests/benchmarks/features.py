"""What each library can do with DeBERTa. A cell is the result of running it, or names its source.

A probe returns whether the library can, and raises nothing: a library that fails at a task cannot do it. A probe of a
library that is not installed is not run, and its cell says so.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np

import deberta_jax
from deberta_jax import DebertaConfig
from deberta_jax.convert.mapping import to_params, to_state_dict

from ..support.pytorch_files import MLM, RTD, V1, V3, random_state

OFFICIAL = "[code](https://github.com/microsoft/DeBERTa)"
IDS = np.array([[1, 7, 9, 12, 2, 1, 8, 2]])
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2]])


@dataclasses.dataclass(frozen=True)
class Source:
    """A cell that is not run.

    Attributes:
      answer: what is known.
      where: where it is known from.
    """

    answer: str
    where: str


Cell = Callable[[], bool] | Source


@dataclasses.dataclass(frozen=True)
class Feature:
    """A row of the table: the same question to each library."""

    name: str
    ours: Cell
    transformers: Cell
    keras_hub: Cell
    official: Cell


def answer(cell: Cell, package: str) -> str:
    """Returns the text of a cell, by running it if it is a probe and the package is installed."""
    if isinstance(cell, Source):
        return f"{cell.answer} ({cell.where})"
    if importlib.util.find_spec(package) is None:
        return "not installed"
    return "yes" if cell() else "no"


# ---------------------------------------------------------------- ours


def _params(config: DebertaConfig, *heads: str) -> dict[str, Any]:
    return to_params(random_state(config, *heads), config)


def _ours_has(*names: str) -> bool:
    return all(hasattr(deberta_jax, name) for name in names)


def _ours_v1() -> bool:
    hidden = deberta_jax.Deberta(V1).apply({"params": _params(V1)["deberta"]}, IDS).last_hidden_state  # type: ignore
    return bool(np.isfinite(hidden).all())


def _ours_decoder() -> bool:
    """The logits of a masked token depend on the table of absolute positions."""
    params = _params(V3, MLM)
    model = deberta_jax.DebertaForMaskedLM(V3)
    before = model.apply({"params": params}, IDS).logits  # type: ignore[union-attr]
    table = params["deberta"]["embeddings"]["position_embeddings"]
    table["embedding"] = table["embedding"] + 1 + np.arange(len(table["embedding"]))[:, None]
    return not np.allclose(before, model.apply({"params": params}, IDS).logits, atol=1e-3)  # type: ignore[union-attr]


def _ours_replaced() -> bool:
    logits = deberta_jax.DebertaForReplacedTokenDetection(V3).apply({"params": _params(V3, RTD)}, IDS).logits  # type: ignore
    return logits.shape == IDS.shape


def _ours_packed() -> bool:
    """A packed row equals separate runs of its parts."""
    model, params = deberta_jax.Deberta(V3), {"params": _params(V3)["deberta"]}
    together: Any = model.apply(params, IDS, segment_ids=SEGMENTS)
    alone: Any = model.apply(params, IDS[:, 5:])
    return np.allclose(together.last_hidden_state[:, 5:], alone.last_hidden_state, atol=1e-4)


def _ours_long() -> bool:
    ids = np.arange(700)[None] % 40 + 5
    hidden: Any = deberta_jax.Deberta(V3).apply({"params": _params(V3)["deberta"]}, ids)
    return bool(np.isfinite(hidden.last_hidden_state).all())


def _ours_jax() -> bool:
    model, params = deberta_jax.Deberta(V3), _params(V3)["deberta"]
    hidden: Any = jax.jit(lambda ids: model.apply({"params": params}, ids).last_hidden_state)(IDS)
    return isinstance(hidden, jax.Array) and bool(jnp.isfinite(hidden).all())


# ---------------------------------------------------------------- transformers


def _torch_config(config: DebertaConfig) -> Any:
    import transformers

    fields = config.to_json() | {"pos_att_type": list(config.pos_att_type)}
    fields.pop("model_type")
    return transformers.DebertaV2Config(**fields)


def _transformers_has(*names: str) -> bool:
    import transformers

    return all(hasattr(transformers, name) for name in names)


def _transformers_flax() -> bool:
    return _transformers_has("FlaxPreTrainedModel")


def _transformers_decoder() -> bool:
    """A model without absolute positions in its input could only have them in a mask decoder."""
    import transformers

    state = transformers.DebertaV2ForMaskedLM(_torch_config(V3)).state_dict()
    return any("position_embeddings" in name for name in state)


def _transformers_fused() -> bool:
    import transformers

    try:
        transformers.AutoModel.from_config(_torch_config(V3), attn_implementation="sdpa")
    except ValueError:
        return False
    return True


def _transformers_packed() -> bool:
    """A mask of pairs, [B, S, S], is what packing needs."""
    import torch
    import transformers

    model = transformers.DebertaV2Model(_torch_config(V3)).eval()
    ids = torch.tensor(IDS)
    mask = torch.tensor((SEGMENTS[:, :, None] == SEGMENTS[:, None, :]).astype(np.int64))
    with torch.no_grad():
        try:
            together = model(ids, attention_mask=mask).last_hidden_state[:, 5:]
        except (RuntimeError, ValueError):
            return False
        return torch.allclose(together, model(ids[:, 5:]).last_hidden_state, atol=1e-4)


def _transformers_long() -> bool:
    """Distances beyond the table read the row that was trained for the largest one, as in the official code.

    The first row of the table is that of no distance within 512 tokens. So changing it must change nothing.
    """
    import torch
    import transformers

    model = transformers.DebertaV2Model(_torch_config(V3.replace(max_position_embeddings=64))).eval()
    ids = torch.tensor(np.arange(100)[None] % 40 + 5)
    with torch.no_grad():
        before = model(ids).last_hidden_state
        model.encoder.rel_embeddings.weight[0] += torch.arange(float(V3.hidden_size))
        return torch.equal(before, model(ids).last_hidden_state)


def _transformers_loads_ours() -> bool:
    import torch
    import transformers

    state = {name: torch.tensor(np.asarray(array)) for name, array in to_state_dict(_params(V3), V3).items()}
    model = transformers.DebertaV2Model(_torch_config(V3))
    missing, _ = model.load_state_dict({name.removeprefix("deberta."): array for name, array in state.items()}, False)
    return not missing


# ---------------------------------------------------------------- KerasHub


def _keras_has(part: str) -> bool:
    import keras_hub

    return any(part in name for name in dir(keras_hub.models) if "Deberta" in name)


def _keras_v1() -> bool:
    import keras_hub

    return any("Deberta" in name and "DebertaV3" not in name for name in dir(keras_hub.models))


def _keras_layout() -> bool:
    import keras_hub

    return hasattr(keras_hub.models.DebertaV3Backbone, "get_layout_map")


# ---------------------------------------------------------------- the table

READ = Source("no", "its source")
FEATURES = (
    Feature("runs in JAX", _ours_jax, _transformers_flax, lambda: _keras_has("Backbone"), Source("no", OFFICIAL)),
    Feature("version 1", _ours_v1, lambda: _transformers_has("DebertaModel"), _keras_v1, Source("yes", OFFICIAL)),
    Feature("enhanced mask decoder", _ours_decoder, _transformers_decoder, READ, Source("yes", OFFICIAL)),
    Feature(
        "replaced-token head",
        _ours_replaced,
        lambda: _transformers_has("DebertaV2ForPreTraining"),
        lambda: _keras_has("Replaced") or _keras_has("Discriminator"),
        Source("yes", OFFICIAL),
    ),
    Feature(
        "token classification, spans, multiple choice",
        lambda: _ours_has("DebertaForTokenClassification", "DebertaForQuestionAnswering", "DebertaForMultipleChoice"),
        lambda: _transformers_has(
            "DebertaV2ForTokenClassification", "DebertaV2ForQuestionAnswering", "DebertaV2ForMultipleChoice"
        ),
        lambda: _keras_has("TokenClassifier") and _keras_has("Question"),
        Source("yes", OFFICIAL),
    ),
    Feature("packed rows", _ours_packed, _transformers_packed, READ, Source("no", OFFICIAL)),
    Feature(
        "more than 512 tokens, with trained rows only",
        _ours_long,
        _transformers_long,
        Source("not tried", "-"),
        Source("no", "bug B19 in docs/design.md"),
    ),
    Feature(
        "fused attention",
        Source("yes, TPU and GPU", "tests/deberta_jax/kernels"),
        _transformers_fused,
        READ,
        Source("no", OFFICIAL),
    ),
    Feature(
        "a table of shardings",
        Source("yes", "deberta_jax/sharding"),
        Source("no", "no tensor-parallel plan in its configuration"),
        _keras_layout,
        Source("no", OFFICIAL),
    ),
    Feature(
        "RTD pre-training with GDES",
        Source("yes", "tests/deberta_jax/test_rtd.py"),
        READ,
        READ,
        Source("yes", OFFICIAL),
    ),
    Feature(
        "resumes bit for bit",
        Source("yes", "tests/train/test_pretrain.py"),
        Source("not tried", "-"),
        Source("not tried", "-"),
        Source("no", OFFICIAL),
    ),
    Feature(
        "reads weights of the other",
        Source("PyTorch's, both ways", "tests/convert"),
        _transformers_loads_ours,
        Source("no", "no converter for DeBERTa in it"),
        Source("no", OFFICIAL),
    ),
)
