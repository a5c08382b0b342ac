"""Parameter names of BERT, RoBERTa and ELECTRA: theirs to the table's, which are DeBERTa's, and back.

Source: the modules of transformers and the published files, which differ in what stands beside the encoder.
"""

from collections.abc import Mapping
from typing import TypeVar

from deberta_jax.config import DebertaConfig

T = TypeVar("T")

# Of each model_type in a config.json, what transformers' classes of it begin with.
TRANSFORMERS_CLASSES = {
    "deberta": "Deberta",
    "deberta-v2": "DebertaV2",
    "bert": "Bert",
    "roberta": "Roberta",
    "electra": "Electra",
}

_PROJECTIONS = {f".attention.self.{name}.": f".attention.self.{name}_proj." for name in ("query", "key", "value")}
_MLM_HEAD, _RTD_HEAD = "lm_predictions.lm_head.", "mask_predictions."

# The start of a key, the longest that fits -> what the table has in its place.
_STARTS = {
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
        "embeddings_project.": "deberta.embeddings.embed_proj.",  # of an encoder that was saved by itself
        "generator_predictions.dense.": f"{_MLM_HEAD}dense.",
        "generator_predictions.LayerNorm.": f"{_MLM_HEAD}LayerNorm.",
        "generator_lm_head.bias": f"{_MLM_HEAD}bias",
        "generator_lm_head.weight": "cls.predictions.decoder.weight",
        "discriminator_predictions.dense.": f"{_RTD_HEAD}dense.",
        "discriminator_predictions.dense_prediction.": f"{_RTD_HEAD}classifier.",
        "sequence_summary.summary.": "pooler.dense.",  # multiple choice
    },
}
# RoBERTa's and ELECTRA's sequence classification has its dense layer under another name than the encoder's pooler.
_DENSE_CLASSIFIER = {"classifier.dense.": "pooler.dense.", "classifier.out_proj.": "classifier."}


def to_table(state: Mapping[str, T], config: DebertaConfig) -> list[tuple[str, T]]:
    """Each value with the table's name for its key. A key that these models do not have stays, for the table to refuse.

    Left out are two kinds of tensors that transformers does not read either: RoBERTa's pooler beside a classification
    head with a dense layer of its own, and the projection in the files of ELECTRA base and large, whose embeddings are
    as wide as the hidden states (huggingface/transformers#7530).
    """
    unread: tuple[str, ...] = ()
    if any(key.startswith("classifier.dense.") for key in state):
        unread += ("roberta.pooler.",)
    if config.embedding_size == config.hidden_size:
        unread += ("electra.embeddings_project.",)
    starts = _STARTS[config.model_type] | ({} if config.model_type == "bert" else _DENSE_CLASSIFIER)
    return [(_replace(key, starts, _PROJECTIONS), value) for key, value in state.items() if not key.startswith(unread)]


def from_table(state: Mapping[str, T], config: DebertaConfig) -> dict[str, T]:
    """The inverse. A pooler and a classifier together are those of transformers' sequence classification."""
    starts = {ours: theirs for theirs, ours in reversed(_STARTS[config.model_type].items())}  # the first that is named
    if config.model_type != "bert" and {"pooler.dense.weight", "classifier.weight"} <= state.keys():
        starts |= {ours: theirs for theirs, ours in _DENSE_CLASSIFIER.items()}
    inside = {ours: theirs for theirs, ours in _PROJECTIONS.items()}
    return {_replace(key, starts, inside): value for key, value in state.items()}


def _replace(key: str, starts: Mapping[str, str], inside: Mapping[str, str]) -> str:
    start = max((start for start in starts if key.startswith(start)), key=len, default="")
    key = starts.get(start, "") + key.removeprefix(start)
    for old, new in inside.items():
        key = key.replace(old, new)
    return key
