"""Reads published `config.json` files: the quirks of DeBERTa's, BERT's, RoBERTa's and ELECTRA's are resolved here.

`config_fields` turns what Microsoft and transformers publish into the fields of `DebertaConfig`.
"""

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import UserError

# The family whose parameter names and config.json a model has. "deberta" covers transformers' "deberta" and
# "deberta-v2". The others are baselines of the papers: the same encoder without relative attention.
ModelType = Literal["deberta", "bert", "roberta", "electra"]

# Fields that do not describe the model: bookkeeping of transformers, of any version.
_IGNORED = frozenset(
    "_name_or_path add_cross_attention architectures attn_implementation bos_token_id chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id dtype eos_token_id finetuning_task "
    "gradient_checkpointing is_decoder is_encoder_decoder legacy max_length num_choices output_attentions "
    "output_hidden_states output_past pooler_hidden_size prefix problem_type pruned_heads "
    "return_dict sep_token_id summary_activation summary_first_dropout summary_last_dropout summary_type "
    "summary_use_proj talking_head task_specific_params tie_encoder_decoder tie_word_embeddings "
    "tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_return_dict label2id".split()
)
# Further bookkeeping, found only in the files of BERT, RoBERTa and ELECTRA.
_IGNORED_IN_BASELINES = frozenset(
    "_num_labels directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
    "pooler_type use_cache".split()
)
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
}
# Defaults of transformers for the baselines, where they differ from those of DebertaConfig.
_BASELINE_DEFAULTS = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1}
_ELECTRA_DEFAULTS = {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
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
    return Path(source) / "config.json" if Path(source).is_dir() else Path(source)


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
      UserError: an unsupported model type, an unknown field (with the nearest known one), or a value of a wrong type.
    """
    if "discriminator" in published or "generator" in published:
        raise UserError(f"{where} describes a generator and a discriminator; read it with RTDConfig.from_json")
    values = _with_model_type(dict(published), where)
    values = {key: value for key, value in values.items() if key not in _IGNORED}
    label_names = _read_labels(values, where)
    _read_pooling(values, where)
    if values.get("hidden_act") == "gelu_pytorch_tanh":  # transformers' name for it
        values["hidden_act"] = "gelu_tanh"
    _check_fields(values, [field for field in fields if field.name != "label_names"], where)
    if not values.get("relative_attention", False):
        values.pop("position_buckets", None)  # the original's BERT baseline has buckets that it never uses
    return {**values, "label_names": label_names}


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint at the known name that is most like `name`, or "" if none is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _with_model_type(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields with our `model_type`; for a baseline also with our field names and its family's defaults."""
    model_type = values.get("model_type") or "deberta"
    if model_type == "deberta-v2":
        model_type = "deberta"
    if model_type not in get_args(ModelType):
        raise UserError(
            f"{where}: model_type is {model_type!r}; it must be one of deberta, deberta-v2, bert, roberta, electra"
        )
    family, padding = {"deberta": ("DeBERTa", 0), "roberta": ("RoBERTa", 1)}.get(model_type, (model_type.upper(), 0))
    for field in ("padding_idx", "pad_token_id"):
        value = values.pop(field, None)
        if value not in (None, padding):
            raise UserError(f"{where}: {field} is {value!r}; it must be {padding}, as in every {family} model")
    if model_type == "deberta":
        return values | {"model_type": model_type}
    for field, supported in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        value = values.pop(field, None)
        if value not in (None, supported):
            raise UserError(f"{where}: {field} is {value!r}; for {family} only {supported!r} is supported")
    values = {key: value for key, value in values.items() if key not in _IGNORED_IN_BASELINES}
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

    Its placeholders LABEL_0, LABEL_1, ... are not names.
    """
    labels = values.pop("id2label", None) or {}
    if not isinstance(labels, Mapping):
        raise UserError(f"{where}: id2label is {labels!r}; it must be an object from class numbers to names")
    try:
        ordered = sorted(labels.items(), key=lambda item: int(item[0]))
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: id2label has the keys {', '.join(map(repr, labels))}; they must be numbers"
        ) from None
    names = tuple(str(name) for _, name in ordered)
    if names:
        values.setdefault("num_labels", len(names))
    return () if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names


def _read_pooling(values: dict[str, Any], where: str) -> None:
    """Replaces Microsoft's `pooling` object by `pooler_dropout` and `pooler_hidden_act`."""
    pooling = values.pop("pooling", None) or {}
    if not isinstance(pooling, Mapping):
        raise UserError(f"{where}: pooling is {pooling!r}; it must be an object with dropout and hidden_act")
    values.setdefault("pooler_dropout", pooling.get("dropout", 0.0))
    values.setdefault("pooler_hidden_act", pooling.get("hidden_act", "gelu"))


def _check_fields(values: Mapping[str, Any], fields: list[dataclasses.Field[Any]], where: str) -> None:
    """Raises UserError for an unknown field, a missing vocab_size or a value of a wrong type."""
    known = {field.name for field in fields}
    unknown = sorted(values.keys() - known)
    if unknown:
        hints = " ".join(f"{key!r}.{nearest(key, known)}" for key in unknown)
        raise UserError(f"{where}: unknown field {hints} Remove it, or correct its name")
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
