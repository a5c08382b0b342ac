"""Writes a model as PyTorch files: `save_pytorch`, and the command `deberta-jax export SOURCE DESTINATION`."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from numpy.typing import DTypeLike

from deberta_jax.atomic_files import write_file
from deberta_jax.atomic_folder import replace_entries
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import MissingPackageError, UserError, one_line, write_errno
from deberta_jax.file_digests import TOKENIZER_FILES
from deberta_jax.mirrors import written_to
from deberta_jax.parameter_check import check_finite
from deberta_jax.terminal import say

from .baseline_names import TRANSFORMERS_CLASSES, from_deberta_names
from .cache import local_model
from .errors import ConversionError
from .folders import check_destination
from .from_pytorch import describe, read_tokenizer, with_classes_of
from .mapping import Params, to_state_dict
from .model_card import CARD, CardOptions, is_ours, model_card
from .quirks import LEGACY_MLM_HEAD, V1_NAMES
from .run_record import RunRecord, model_of_run
from .xlnet_names import from_deberta_layout

State = dict[str, np.ndarray]  # PyTorch's state dict

_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # transformers' names where they differ from this library's
_PROJECTIONS = ("query_proj", "key_proj", "value_proj")
_V1_KEY_BIASES = (".attention.self.key_proj.bias", ".attention.self.pos_key_proj.bias")

# Set of heads -> suffix of transformers' class. A classifier of one class may be for regression or multiple choice.
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
_XLNET_ARCHITECTURES = {
    **_ARCHITECTURES,
    frozenset({"permutation_lm_head"}): "LMHeadModel",
    frozenset({"span_classifier"}): "ForQuestionAnsweringSimple",
}


def save_pytorch(
    folder: str | os.PathLike[str],
    config: DebertaConfig,
    params: Params,
    *,
    dtype: DTypeLike = np.float32,
    tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers loads without missing or unexpected parameters.

    A DeBERTa is written in the published version 1 layout (`DebertaModel`) if that can hold it, which requires key
    biases of zero, and otherwise in the layout of version 2 (`DebertaV2Model`), which can hold any DeBERTa.
    transformers does not use `position_embeddings` without `position_biased_input` and has no class for `rtd_head`;
    both are written anyway, as in the published files, and `load_pytorch` reads them back. A masked LM head is written
    in the form that `config.mlm_head` names: "legacy" with `legacy: true`, the others under the official names with
    `legacy: false`. transformers has no enhanced mask decoder and runs both forms on the last hidden state.

    A BERT, RoBERTa, ELECTRA or XLNet is written in its own layout. transformers' base classes of the first two have a
    pooler, which is initialized at random if `params` has none. A pooler and a classifier of RoBERTa or ELECTRA are
    written as a sequence classification head; transformers' multiple choice head has other names.

    Args:
      folder: Folder to write to; it is created if necessary. Files of these names are replaced together: a process
        that is killed leaves the old model or the new one.
      config: As `load_pytorch` returns it.
      params: As `load_pytorch` returns them.
      dtype: float32, float16 or bfloat16. float32 is lossless.
      tokenizer: Files of the tokenizer by name. They replace the tokenizer in the folder (default: it stays).

    Raises:
      ConversionError: The parameters do not match the configuration, or transformers cannot hold the model: a GDES
        discriminator without its generator, `token_proj`, heads whose sizes do not add up to hidden_size, or values
        that float16 cannot represent.
      UserError: Another dtype.
      MissingPackageError: safetensors is not installed.
    """
    number_type = np.dtype(dtype)
    if number_type.name not in _DTYPES:
        raise UserError(f"dtype is {number_type.name}; it must be one of {', '.join(_DTYPES)}")
    _check_representable(config, params)
    state = to_state_dict(params, config)
    fields = _config_fields(config, params)
    if config.model_type == "deberta":
        state, fields = _deberta_layout(config, params, state, fields)
    elif config.model_type == "xlnet":
        state = from_deberta_layout(state, config)
    else:
        state = from_deberta_names(state, config)
    fields |= _architectures(fields["model_type"], params)
    fields["dtype"] = number_type.name
    tensors = {key: _cast(array, number_type, key) for key, array in state.items()}
    with written_to(folder) as local:
        _write(local, tensors, fields, tokenizer)


def _check_representable(config: DebertaConfig, params: Params) -> None:
    """Raises if no class of transformers can hold the model."""
    tables = params.get("deberta", {}).get("embeddings", {}).values()
    if any("delta" in table for table in tables):
        raise ConversionError(
            "this GDES discriminator contains only differences (delta) to its generator's embeddings; add the two with "
            "deberta_jax.rtd.standalone_discriminator first"
        )
    if "token_proj" in params:
        raise ConversionError(
            "transformers has no layer for token_proj (Microsoft's token classification) and would ignore it"
        )
    if config.num_attention_heads * config.attention_head_size != config.hidden_size:
        raise ConversionError(
            f"transformers requires num_attention_heads {config.num_attention_heads} x attention_head_size "
            f"{config.attention_head_size} to equal hidden_size {config.hidden_size}"
        )


def _config_fields(config: DebertaConfig, params: Params) -> dict[str, Any]:
    config = with_classes_of(params, config)  # transformers counts a span's start and end as labels
    fields = {**config.to_json(), "pad_token_id": config.pad_token_id}
    fields.pop("token_projection", None)  # the weights say so
    for name in ("hidden_act", "conv_act", "pooler_hidden_act", "ff_activation"):
        if name in fields:
            fields[name] = _ACTIVATIONS.get(fields[name], fields[name])
    if "layer_norm" not in params["deberta"]["encoder"] and "norm_rel_ebd" in fields:
        fields["norm_rel_ebd"] = "none"  # optional here without relative attention, but not in transformers
    return fields


def _architectures(model_type: str, params: Params) -> dict[str, list[str]]:
    heads = frozenset(params) - {"deberta"}
    suffixes = _ARCHITECTURES if model_type.startswith("deberta") else _BASELINE_ARCHITECTURES
    suffixes = _XLNET_ARCHITECTURES if model_type == "xlnet" else suffixes
    ambiguous = "classifier" in heads and params["classifier"]["bias"].shape[0] == 1
    if ambiguous or heads not in suffixes:
        return {}
    return {"architectures": [TRANSFORMERS_CLASSES[model_type] + suffixes[heads]]}


# ------------------------------------------------------------------------------------------------------- layouts


def _deberta_layout(
    config: DebertaConfig, params: Params, state: State, fields: dict[str, Any]
) -> tuple[State, dict[str, Any]]:
    """Returns state dict and config.json fields in the version and with the MLM head that transformers reads."""
    fields = {**fields, "legacy": False}
    if _fits_v1_layout(config, state):
        state = join_v1_projections(config, state)
        fields["model_type"] = "deberta"
    # The head that is not legacy multiplies hidden states with the word embeddings, so their sizes must be equal.
    legacy = config.mlm_head == "legacy" or config.embedding_size != config.hidden_size
    if "mlm_head" in params and legacy:
        state = rename_keys(state, {current: old for old, current in LEGACY_MLM_HEAD.items()})
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


def join_v1_projections(config: DebertaConfig, state: Mapping[str, np.ndarray]) -> State:
    """Joins query, key and value to one `in_proj` [heads x (q, k, v) x head size, D] and drops the zero key biases."""
    joined = {key: array for key, array in state.items() if not key.endswith(_V1_KEY_BIASES)}
    by_head = (config.num_attention_heads, config.attention_head_size, config.hidden_size)
    for i in range(config.num_hidden_layers):
        prefix = f"deberta.encoder.layer.{i}.attention.self."
        parts = [joined.pop(f"{prefix}{name}.weight").reshape(by_head) for name in _PROJECTIONS]
        joined[f"{prefix}in_proj.weight"] = np.stack(parts, axis=1).reshape(-1, config.hidden_size)
    return rename_keys(joined, {current: v1 for v1, current in V1_NAMES.items()})


def rename_keys(state: Mapping[str, np.ndarray], names: Mapping[str, str]) -> State:
    """Replaces, in each key, the first of `names` that occurs in it."""
    renamed = {}
    for key, array in state.items():
        old = next((name for name in names if name in key), "")
        renamed[key.replace(old, names[old]) if old else key] = array
    return renamed


def _cast(array: Float[np.ndarray, "*shape"], dtype: np.dtype[Any], key: str) -> Float[np.ndarray, "*shape"]:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype)
    if dtype == np.float16 and np.any(np.isinf(cast) & np.isfinite(array)):
        raise ConversionError(f"{key} has values that float16 cannot represent; save as bfloat16 or float32")
    return cast


# --------------------------------------------------------------------------------------------------------- files


def _write(folder: Path, tensors: State, fields: dict[str, Any], tokenizer: Mapping[str, bytes]) -> None:
    try:
        import safetensors.numpy  # noqa: F401 (before a folder is created)
    except ImportError:
        raise MissingPackageError(
            f"writing {folder} needs the package safetensors; install deberta-jax[convert]"
        ) from None
    obsolete = [name for name in TOKENIZER_FILES if name not in tokenizer] if tokenizer else []
    with replace_entries(folder, last="model.safetensors", remove=obsolete) as new:
        for name, content in tokenizer.items():
            (new / name).write_bytes(content)
        (new / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_tensors(new / "model.safetensors", tensors, where=folder, metadata={"format": "pt"})


def write_tensors(path: Path, tensors: State, *, where: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the permissions of other new files; safetensors allows only the owner to read it.

    Args:
      path: The file.
      tensors: Arrays by name.
      where: The folder of the model, for messages.
      metadata: Texts for the header of the file (default: none).

    Raises:
      OSError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # which has no error number
        message = f"{where} was not written: {one_line(error)}; an earlier model stays"
        raise OSError(write_errno(error), message) from None
    path.chmod(mode)


# ------------------------------------------------------------------------------------------------------- command


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export a deberta-jax folder as PyTorch files that transformers loads."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("runs/sst2/model for-transformers",)

    source: tyro.conf.Positional[str]
    """Folder that deberta-jax wrote, a folder or hub name with PyTorch files, or deberta-v3-tiny"""
    destination: tyro.conf.Positional[Path]
    """Folder to write config.json and model.safetensors to"""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the weights"""
    license: str | None = None
    """License in the model card, an identifier of the hub such as mit or apache-2.0 (default: unknown)"""


def main(config: ExportConfig) -> None:
    """Runs `deberta-jax export`.

    Raises:
      Exception: As `local_model`, `model_of_run`, `load_pretrained` and `save_pytorch`.
    """
    from deberta_jax.checkpoint import PARAMETERS_FOLDER, load_pretrained

    check_destination(config.destination, Path(config.source), foreign=[PARAMETERS_FOLDER])
    source, record = Path(config.source), RunRecord()
    if source.is_dir():
        source, record = model_of_run(source)
    folder = local_model(source)
    model_config, params = load_pretrained(folder)
    check_finite(params, where=config.source)
    tokenizer = read_tokenizer(folder)
    save_pytorch(config.destination, model_config, params, dtype=_DTYPES[config.dtype], tokenizer=tokenizer)
    say(f"wrote {config.destination}: {describe(params)}")
    if is_ours(config.destination):
        options = CardOptions(config.destination.resolve().name, config.license)
        write_file(config.destination / CARD, model_card(model_config, params, record, options))
    else:
        say(f"{config.destination / CARD} is yours and stays as it is")
