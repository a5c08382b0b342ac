"""Reads and writes XLNet's `config.json`, whose fields have other names than DeBERTa's.

Source: `XLNetConfig` of transformers, and the published files.
"""

from collections.abc import Mapping
from typing import Any

from .errors import UserError

# XLNet's name of a field -> this library's name.
_NAMES = {
    "n_token": "vocab_size",
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_head": "attention_head_size",
    "d_inner": "intermediate_size",
    "ff_activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
}
# Defaults of transformers where they differ from those of DebertaConfig.
_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
}
# Fields that change what a model computes, and the values that this library supports.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attn_type": ("bi",),
    "bi_data": (False,),
    "clamp_len": (-1, 0),
    "same_length": (False,),
    "untie_r": (True,),
    "summary_type": ("last",),
    "summary_use_proj": (True,),
    "summary_activation": ("tanh",),
    "summary_first_dropout": (0, 0.0),
    "summary_proj_to_labels": (False,),
}
# Settings of the memory of earlier texts and of the beam search for answers, which this library has not.
_UNREAD = ("mem_len", "reuse_len", "use_mems", "use_mems_eval", "use_mems_train", "start_n_top", "end_n_top")


def from_xlnet_fields(published: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of a published configuration under this library's names, with transformers' defaults.

    Args:
      published: the fields; `to_xlnet_fields` is the inverse.
      where: the file, for messages.

    Raises:
      UserError: a setting that changes what a model computes has another value than the supported one, or a field has
        two values under two names.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}  # under which a field was given
    for name, value in published.items():
        if name in _UNREAD:
            continue
        if name in _SUPPORTED:
            if value is not None and value not in _SUPPORTED[name]:
                raise UserError(
                    f"{where}: {name} is {value!r}; for XLNet only {_SUPPORTED[name][0]!r} is supported, the value of "
                    "the published models"
                )
            continue
        known = _NAMES.get(name, name)
        if value is not None and values.setdefault(known, value) != value:
            raise UserError(
                f"{where}: {names[known]} is {values[known]!r}, but {name}, another name of it, is {value!r}; remove "
                "one of them"
            )
        names.setdefault(known, name)
    last_dropout = values.pop("summary_last_dropout", 0.1)
    values = {**_DEFAULTS, **values, "cls_dropout": published.get("cls_dropout", last_dropout)}
    return {"attention_probs_dropout_prob": values["hidden_dropout_prob"], **values}


def to_xlnet_fields(
    fields: Mapping[str, Any], *, fixed: Mapping[str, Any], classifier_dropout: float
) -> dict[str, Any]:
    """Returns the fields of a configuration under XLNet's names.

    Args:
      fields: the fields of a `DebertaConfig`.
      fixed: fields that `model_type` fixes, which are left out.
      classifier_dropout: dropout rate in front of a classifier.
    """
    names = {ours: theirs for theirs, ours in _NAMES.items() if theirs != "n_token"}
    left_out = {*fixed, "embedding_size", "attention_probs_dropout_prob"}
    renamed = {names.get(name, name): value for name, value in fields.items() if name not in left_out}
    supported = {name: _SUPPORTED[name][0] for name in ("attn_type", "summary_type", "summary_activation")}
    return {**renamed, **supported, "summary_last_dropout": classifier_dropout, "untie_r": True}
