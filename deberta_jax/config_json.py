"""Reads published `config.json` files: the quirks of DeBERTa's, BERT's, RoBERTa's and ELECTRA's are resolved here.

`config_fields` turns what Microsoft and transformers publish into the fields of `DebertaConfig`. `unknown_fields`
decides about those that it does not have.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import UserError
from .mirrors import local_copy
from .terminal import quote_names, shorten
from .unknown_fields import set_aside
from .xlnet_json import from_xlnet_fields

# The family whose parameter names and config.json a model has. "deberta" covers transformers' "deberta" and
# "deberta-v2". The others are baselines of the papers: the same encoder without relative attention, and XLNet, whose
# encoder is in `xlnet`.
ModelType = Literal["deberta", "bert", "roberta", "electra", "xlnet"]

# Fields that a baseline's model_type fixes. RoBERTa and ELECTRA fix hidden_act, because the activation of their
# masked LM head is always gelu.
_PLAIN_ATTENTION = {
    "relative_attention": False,
    "conv_kernel_size": 0,
    "position_biased_input": True,
    "mlm_head": "bert",
}
FIXED_FIELDS: dict[str, dict[str, Any]] = {
    "bert": {**_PLAIN_ATTENTION, "pooler_hidden_act": "tanh"},
    "roberta": {**_PLAIN_ATTENTION, "pooler_hidden_act": "tanh", "hidden_act": "gelu"},
    "electra": {**_PLAIN_ATTENTION, "pooler_hidden_act": "gelu", "hidden_act": "gelu"},
    "xlnet": {
        **_PLAIN_ATTENTION,
        "position_biased_input": False,
        "max_position_embeddings": 512,  # of a table that XLNet does not have
        "type_vocab_size": 0,
        "pooler_hidden_act": "tanh",
        "pooler_dropout": 0.0,
        "pos_att_type": (),
        "max_relative_positions": -1,
        "position_buckets": -1,
        "norm_rel_ebd": "none",
        "share_att_key": False,
        "conv_act": "tanh",
        "conv_groups": 1,
    },
}
# Defaults of transformers for the baselines, where they differ from those of DebertaConfig.
_BASELINE_DEFAULTS = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1}
_ELECTRA_DEFAULTS = {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
# What transformers calls an activation -> this library's name. The forms of a line are equal up to rounding.
_ACTIVATION_NAMES = {
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
    "gelu_python": "gelu",
}
_MOST_LABELS = 2**20  # a larger class number is a damaged file, and must not fill the memory with placeholders
# What JSON may hold for a field of each type. Fields of other types are checked by DebertaConfig.
_JSON_TYPES = {
    int: (int,),
    float: (int, float),
    float | None: (int, float, type(None)),
    bool: (bool,),
    str: (str,),
}


def config_path(source: str | os.PathLike[str]) -> Path:
    """Returns the path of a configuration: the file itself, or `config.json` in a folder."""
    path = local_copy(source)
    return path / "config.json" if path.is_dir() else path


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is not JSON, or not an object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError and JSONDecodeError
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds a {type(fields).__name__}; expected a JSON object")
    return fields


def config_fields(
    published: Mapping[str, Any], fields: Iterable[dataclasses.Field[Any]], *, where: str
) -> dict[str, Any]:
    """Returns the arguments of `DebertaConfig` for a published configuration.

    Args:
      published: a parsed `config.json` of Microsoft, of transformers, or of `DebertaConfig.to_json`.
      fields: the dataclass fields of `DebertaConfig`.
      where: the file, for error messages.

    Raises:
      UserError: an unsupported model type, quantized weights, an unknown field that looks like a known one, or a value
        of a wrong type.
    """
    if "discriminator" in published or "generator" in published:
        raise UserError(f"{where} describes a generator and a discriminator; read it with RTDConfig.from_json")
    values = _with_model_type(dict(published), where)
    label_names = _read_labels(values, where)
    _read_pooling(values, where)
    fields = [field for field in fields if field.name != "label_names"]
    values = set_aside(values, {field.name for field in fields}, where=where)
    values = {name: value for name, value in values.items() if value is not None}  # null means the default
    for name in ("hidden_act", "conv_act", "pooler_hidden_act"):
        if isinstance(values.get(name), str):
            values[name] = _ACTIVATION_NAMES.get(values[name], values[name])
    _check_fields(values, fields, where)
    if not values.get("relative_attention", False):
        values.pop("position_buckets", None)  # the original's BERT baseline has buckets that it never uses
    return {**values, "label_names": label_names}


def _with_model_type(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields with our `model_type`; for a baseline also with our field names and its family's defaults."""
    model_type = values.get("model_type") or "deberta"
    if model_type == "deberta-v2":
        model_type = "deberta"
    if model_type not in get_args(ModelType):
        raise UserError(
            f"{where}: model_type is {model_type!r}; it must be one of deberta, deberta-v2, bert, roberta, electra, "
            "xlnet"
        )
    families = {"deberta": ("DeBERTa", 0), "roberta": ("RoBERTa", 1), "xlnet": ("XLNet", 5)}
    family, padding = families.get(model_type, (model_type.upper(), 0))
    for field in ("padding_idx", "pad_token_id"):
        value = values.pop(field, None)
        if value not in (None, padding):
            raise UserError(f"{where}: {field} is {value!r}; it must be {padding}, as in every {family} model")
    if model_type == "deberta":
        return values | {"model_type": model_type}
    if values.get("is_decoder"):
        raise UserError(f"{where}: is_decoder is {values['is_decoder']!r}; for {family} only False is supported")
    if model_type == "xlnet":
        return {**FIXED_FIELDS[model_type], **from_xlnet_fields(values, where)}
    dropout = values.pop("classifier_dropout", None)
    values.setdefault("cls_dropout", dropout)
    family_defaults = _ELECTRA_DEFAULTS if model_type == "electra" else {}
    values = {**_BASELINE_DEFAULTS, **family_defaults, **FIXED_FIELDS[model_type], **values}
    if model_type != "bert":  # their classification heads apply dropout before and after the dense layer
        dropout = values["hidden_dropout_prob"] if values["cls_dropout"] is None else values["cls_dropout"]
        values.setdefault("pooler_dropout", dropout)
    return values


def _read_labels(values: dict[str, Any], where: str) -> tuple[str, ...]:
    """Takes transformers' `id2label` out of the fields, sets `num_labels` and returns the names of the labels.

    Its placeholders LABEL_0, LABEL_1, ... are not names; they fill the gaps if only some classes have names.
    Without `id2label`, `label2id` is read.
    """
    labels = values.pop("id2label", None) or _inverted(values.get("label2id"))
    if not isinstance(labels, Mapping):
        raise UserError(
            f"{where}: id2label is {shorten(repr(labels))}; it must be an object from class numbers to names"
        )
    try:
        named = {int(index): str(name) for index, name in labels.items()}
    except (TypeError, ValueError):
        raise UserError(f"{where}: id2label has the keys {quote_names(labels)}; they must be numbers") from None
    if named and not 0 <= min(named) <= max(named) < _MOST_LABELS:
        raise UserError(f"{where}: id2label has the classes {min(named)} to {max(named)}; they must count from 0")
    count = values.pop("num_labels", None)
    if count is not None and type(count) is not int:
        raise UserError(f"{where}: num_labels is {count!r}; it must be of type int")
    if all(name == f"LABEL_{index}" for index, name in named.items()):
        count, named = (len(labels) or None) if count is None else count, {}
    elif count is None or count <= max(named):
        count = max(named) + 1  # transformers, too, counts the names
    if count is not None:
        values["num_labels"] = count
    return tuple(named.get(index, f"LABEL_{index}") for index in range(count or 0)) if named else ()


def _inverted(label2id: Any) -> dict[Any, str]:
    """Returns the names by class of transformers' `label2id`, or nothing if it is not such an object."""
    if not isinstance(label2id, Mapping) or not all(type(index) is int for index in label2id.values()):
        return {}
    return {index: name for name, index in label2id.items()}


def _read_pooling(values: dict[str, Any], where: str) -> None:
    """Replaces Microsoft's `pooling` object by `pooler_dropout` and `pooler_hidden_act`."""
    pooling = values.pop("pooling", None) or {}
    if not isinstance(pooling, Mapping):
        raise UserError(f"{where}: pooling is {pooling!r}; it must be an object with dropout and hidden_act")
    values.setdefault("pooler_dropout", pooling.get("dropout", 0.0))
    values.setdefault("pooler_hidden_act", pooling.get("hidden_act", "gelu"))


def _check_fields(values: Mapping[str, Any], fields: list[dataclasses.Field[Any]], where: str) -> None:
    """Raises UserError for a missing vocab_size or a value of a wrong type."""
    if values.get("vocab_size") is None:
        raise UserError(f"{where}: vocab_size is missing; add the number of tokens of the vocabulary")
    for field in fields:
        allowed = _JSON_TYPES.get(field.type)  # type: ignore[arg-type]  # field.type is a type, not a string, here
        if field.name not in values or allowed is None:
            continue
        value = values[field.name]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            name = getattr(field.type, "__name__", str(field.type))
            raise UserError(f"{where}: {field.name} is {value!r}; it must be of type {name}")
