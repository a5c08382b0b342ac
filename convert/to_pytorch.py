"""Our weights to PyTorch: `save_pytorch`, and the command `deberta-jax export SRC DST`."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import DTypeLike

from deberta_jax.atomic_files import replace_file
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError

from .baseline_names import TRANSFORMERS_CLASSES, from_table
from .from_pytorch import copy_tokenizer, describe
from .mapping import Params, to_state_dict
from .quirks import LEGACY_MLM_HEAD, V1_NAMES, ConversionError

_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # transformers' names where they differ from ours
_PROJECTIONS = ("query_proj", "key_proj", "value_proj")
_V1_KEY_BIASES = (".attention.self.key_proj.bias", ".attention.self.pos_key_proj.bias")

# Which of transformers' classes a set of heads means; a classifier with one row may be regression or multiple choice.
_ARCHITECTURES = {
    frozenset(): "Model",
    frozenset({"mlm_head"}): "ForMaskedLM",
    frozenset({"mlm_head", "rtd_head"}): "ForMaskedLM",
    frozenset({"pooler", "classifier"}): "ForSequenceClassification",
    frozenset({"classifier"}): "ForTokenClassification",
    frozenset({"span_classifier"}): "ForQuestionAnswering",
}
_BASELINE_ARCHITECTURES = {
    **_ARCHITECTURES,
    frozenset({"pooler"}): "Model",
    frozenset({"mlm_head", "pooler"}): "ForMaskedLM",
    frozenset({"mlm_head", "pooler", "next_sentence_head"}): "ForPreTraining",
    frozenset({"rtd_head"}): "ForPreTraining",
}


def save_pytorch(
    folder: str | os.PathLike[str], config: DebertaConfig, params: Params, *, dtype: DTypeLike = np.float32
) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers loads with nothing missing or left over.

    A model that the published version 1 layout can hold is written in it (`DebertaModel`; the biases of keys must be
    zero), every other one in that of version 2 (`DebertaV2Model`), which can hold version 1's arithmetic as well.
    transformers does not use `position_embeddings` without `position_biased_input` and has no class for `rtd_head`;
    both are written nevertheless, as in the published files, and `load_pytorch` reads them back. A masked LM head is
    written as `config.mlm_head` says: legacy with `legacy: true`, the others under the official names with
    `legacy: false`; transformers runs neither behind the enhanced mask decoder.

    A BERT, RoBERTa or ELECTRA is written in its own layout. transformers' base class of the first two has a pooler, and
    makes one up where `params` has none; RoBERTa's and ELECTRA's pooler and classifier are always written as those of
    a sequence classification, of which multiple choice has others.

    Args:
      folder: made if need be; files of these names are replaced only once the new ones are complete.
      config, params: as `load_pytorch` returns them.
      dtype: float32, float16 or bfloat16. float32 comes back bit for bit.

    Raises:
      ConversionError: params that do not match config, or a model that transformers cannot hold: a GDES discriminator
        without its generator, `token_proj`, heads whose sizes do not add up to hidden_size, values beyond float16.
      ValueError: another dtype.
    """
    kind = np.dtype(dtype)
    if kind.name not in _DTYPES:
        raise UserError(f"dtype is {kind.name}; it must be one of {', '.join(_DTYPES)}")
    _refuse_unrepresentable(config, params)
    state = to_state_dict(params, config)
    fields = _config_fields(config, params)
    if config.model_type == "deberta":
        state, fields = _deberta_layout(config, params, state, fields)
    else:
        state = from_table(state, config)
    fields |= _architectures(fields["model_type"], params)
    fields["dtype"] = kind.name
    tensors = {key: _cast(array, kind, key) for key, array in state.items()}
    _write(Path(folder), tensors, fields)


def _refuse_unrepresentable(config: DebertaConfig, params: Params) -> None:
    tables = params.get("deberta", {}).get("embeddings", {}).values()
    if any("delta" in table for table in tables):
        raise ConversionError(
            "this GDES discriminator holds differences (delta) to its generator's embeddings; add the two first, with "
            "deberta_jax.rtd.standalone_discriminator"
        )
    if "token_proj" in params:
        raise ConversionError(
            "transformers has no layer for token_proj (Microsoft's token classification); its model would leave it out"
        )
    if config.num_attention_heads * config.attention_head_size != config.hidden_size:
        raise ConversionError(
            f"transformers needs num_attention_heads {config.num_attention_heads} x attention_head_size "
            f"{config.attention_head_size} to be hidden_size {config.hidden_size}"
        )


def _config_fields(config: DebertaConfig, params: Params) -> dict[str, Any]:
    fields = {**config.to_json(), "pad_token_id": config.pad_token_id}
    for name in ("hidden_act", "conv_act", "pooler_hidden_act"):
        fields[name] = _ACTIVATIONS.get(fields[name], fields[name])
    if "layer_norm" not in params["deberta"]["encoder"]:
        fields["norm_rel_ebd"] = "none"  # without relative attention ours need not have it, transformers' would
    if "classifier" in params:
        fields["num_labels"] = int(params["classifier"]["bias"].shape[0])
    elif "span_classifier" in params:
        fields["num_labels"] = 2  # transformers' spans have a start and an end for labels
    return fields


def _architectures(model_type: str, params: Params) -> dict[str, list[str]]:
    heads = frozenset(params) - {"deberta"}
    known = _ARCHITECTURES if model_type.startswith("deberta") else _BASELINE_ARCHITECTURES
    unclear = "classifier" in heads and params["classifier"]["bias"].shape[0] == 1
    if unclear or heads not in known:
        return {}
    return {"architectures": [TRANSFORMERS_CLASSES[model_type] + known[heads]]}


# ------------------------------------------------------------------------------------------------------- layouts


def _deberta_layout(
    config: DebertaConfig, params: Params, state: dict[str, np.ndarray], fields: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """State and fields of the version, and of the form of masked LM head, that transformers is to read."""
    fields = {**fields, "legacy": False}
    if _fits_v1_layout(config, state):
        state = _join_v1_projections(config, state)
        fields["model_type"] = "deberta"
    # transformers' other head multiplies hidden states with the word embeddings, so their sizes must be equal.
    legacy = config.mlm_head == "legacy" or config.embedding_size != config.hidden_size
    if "mlm_head" in params and legacy:
        state = _rename(state, {ours: theirs for theirs, ours in LEGACY_MLM_HEAD.items()})
        fields |= {"legacy": True, "mlm_head": "legacy"}
    return state, fields


def _fits_v1_layout(config: DebertaConfig, state: Mapping[str, np.ndarray]) -> bool:
    return (
        config.relative_attention
        and not config.share_att_key
        and config.position_buckets < 1
        and config.norm_rel_ebd == "none"
        and config.conv_kernel_size == 0
        and not any(np.any(array) for key, array in state.items() if key.endswith(_V1_KEY_BIASES))
    )


def _join_v1_projections(config: DebertaConfig, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Query, key and value in one `in_proj` [heads x (q, k, v) x head size, D]; no biases of keys, which are zero."""
    joined = {key: array for key, array in state.items() if not key.endswith(_V1_KEY_BIASES)}
    by_head = (config.num_attention_heads, config.attention_head_size, config.hidden_size)
    for i in range(config.num_hidden_layers):
        prefix = f"deberta.encoder.layer.{i}.attention.self."
        parts = [joined.pop(f"{prefix}{name}.weight").reshape(by_head) for name in _PROJECTIONS]
        joined[f"{prefix}in_proj.weight"] = np.stack(parts, axis=1).reshape(-1, config.hidden_size)
    return _rename(joined, {current: v1 for v1, current in V1_NAMES.items()})


def _rename(state: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    renamed = {}
    for key, array in state.items():
        old = next((name for name in names if name in key), "")
        renamed[key.replace(old, names[old]) if old else key] = array
    return renamed


def _cast(array: np.ndarray, dtype: np.dtype[Any], key: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype)
    if dtype == np.float16 and np.any(np.isinf(cast) & np.isfinite(array)):
        raise ConversionError(f"{key} has values that float16 cannot hold; save as bfloat16 or float32")
    return cast


# --------------------------------------------------------------------------------------------------------- files


def _write(folder: Path, tensors: dict[str, np.ndarray], fields: dict[str, Any]) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise ConversionError(f"writing {folder} needs safetensors (pip install 'deberta-jax[convert]')") from None
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / "config.json") as config, replace_file(folder / "model.safetensors") as weights:
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(tensors, weights, metadata={"format": "pt"})
        shutil.copymode(config, weights)  # safetensors lets nobody else read its files


# ------------------------------------------------------------------------------------------------------- command


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export a folder of deberta-jax to PyTorch, for transformers."""

    source: tyro.conf.Positional[Path]
    """Folder written by deberta-jax."""
    destination: tyro.conf.Positional[Path]
    """Folder to write config.json and model.safetensors to."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the numbers in the file."""


def main(config: ExportConfig) -> None:
    """Runs `deberta-jax export`. Raises what `load_pretrained` and `save_pytorch` raise."""
    from deberta_jax.checkpoint import load_pretrained

    deberta, params = load_pretrained(config.source)
    save_pytorch(config.destination, deberta, params, dtype=_DTYPES[config.dtype])
    copy_tokenizer(config.source, config.destination)
    print(f"wrote {config.destination}: {describe(params)}")
