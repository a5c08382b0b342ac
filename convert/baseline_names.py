"""Renames the parameters of BERT, RoBERTa and ELECTRA to DeBERTa's names, which `mapping.TABLE` knows, and back.

Source: the modules of transformers, and the published files, whose parameters outside the encoder differ from them.
"""

from collections.abc import Mapping
from typing import TypeVar

from deberta_jax.config import DebertaConfig

T = TypeVar("T")

# The `model_type` of a config.json -> the prefix of transformers' class names.
TRANSFORMERS_CLASSES = {
    "deberta": "Deberta",
    "deberta-v2": "DebertaV2",
    "bert": "Bert",
    "roberta": "Roberta",
    "electra": "Electra",
    "xlnet": "XLNet",
}

_PROJECTIONS = {f".attention.self.{name}.": f".attention.self.{name}_proj." for name in ("query", "key", "value")}
_MLM_HEAD, _RTD_HEAD = "lm_predictions.lm_head.", "mask_predictions."

# Prefix of a baseline's key -> prefix of DeBERTa's key. The longest prefix that fits is replaced.
_PREFIXES = {
    "bert": {
        "bert.": "deberta.",
        "bert.pooler.": "pooler.",
        "cls.predictions.transform.dense.": f"{_MLM_HEAD}dense.",
        "cls.predictions.transform.LayerNorm.": f"{_MLM_HEAD}LayerNorm.",
        "cls.predictions.bias": f"{_MLM_HEAD}bias",
    },
    "roberta": {
        "roberta.": "deberta.",
        "roberta.pooler.": "pooler.",
        "lm_head.dense.": f"{_MLM_HEAD}dense.",
        "lm_head.layer_norm.": f"{_MLM_HEAD}LayerNorm.",
        "lm_head.bias": f"{_MLM_HEAD}bias",
        "lm_head.decoder.": "cls.predictions.decoder.",
    },
    "electra": {
        "electra.": "deberta.",
        "electra.embeddings_project.": "deberta.embeddings.embed_proj.",
        "embeddings_project.": "deberta.embeddings.embed_proj.",  # an encoder that was saved without a head
        "generator_predictions.dense.": f"{_MLM_HEAD}dense.",
        "generator_predictions.LayerNorm.": f"{_MLM_HEAD}LayerNorm.",
        "generator_lm_head.bias": f"{_MLM_HEAD}bias",
        "generator_lm_head.weight": "cls.predictions.decoder.weight",
        "discriminator_predictions.dense.": f"{_RTD_HEAD}dense.",
        "discriminator_predictions.dense_prediction.": f"{_RTD_HEAD}classifier.",
        "sequence_summary.summary.": "pooler.dense.",  # multiple choice
    },
}
# Sequence classification of RoBERTa and ELECTRA has a dense layer of its own instead of the encoder's pooler.
_DENSE_CLASSIFIER = {"classifier.dense.": "pooler.dense.", "classifier.out_proj.": "classifier."}


def to_deberta_names(state: Mapping[str, T], config: DebertaConfig) -> list[tuple[str, T]]:
    """Returns each value with DeBERTa's name for its key; unknown keys are unchanged, and `mapping` reports them.

    Two kinds of tensors that transformers does not read are dropped: RoBERTa's pooler, where a classification head has
    a dense layer of its own, and the embedding projection in the files of ELECTRA base and large, whose embeddings are
    as wide as the hidden states (huggingface/transformers#7530).
    """
    unused: tuple[str, ...] = ()
    if any(key.startswith("classifier.dense.") for key in state):
        unused += ("roberta.pooler.",)
    if config.embedding_size == config.hidden_size:
        unused += ("electra.embeddings_project.",)
    prefixes = _PREFIXES[config.model_type] | ({} if config.model_type == "bert" else _DENSE_CLASSIFIER)
    return [(_rename(key, prefixes, _PROJECTIONS), value) for key, value in state.items() if not key.startswith(unused)]


def from_deberta_names(state: Mapping[str, T], config: DebertaConfig) -> dict[str, T]:
    """Returns each value with the baseline's name for its key, the inverse of `to_deberta_names`.

    A pooler and a classifier together are written as transformers' sequence classification.
    """
    # Reversed, so that the first of several prefixes with the same DeBERTa name is the one that is written.
    prefixes = {deberta: baseline for baseline, deberta in reversed(_PREFIXES[config.model_type].items())}
    if config.model_type != "bert" and {"pooler.dense.weight", "classifier.weight"} <= state.keys():
        prefixes |= {deberta: baseline for baseline, deberta in _DENSE_CLASSIFIER.items()}
    projections = {deberta: baseline for baseline, deberta in _PROJECTIONS.items()}
    return {_rename(key, prefixes, projections): value for key, value in state.items()}


def _rename(key: str, prefixes: Mapping[str, str], infixes: Mapping[str, str]) -> str:
    prefix = max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default="")
    key = prefixes.get(prefix, "") + key.removeprefix(prefix)
    for old, new in infixes.items():
        key = key.replace(old, new)
    return key
