"""Renames the parameters of XLNet to the names in `mapping.XLNET_TABLE`, in the layout of linear layers, and back.

Projections are [D, heads, head size] in the published files, for queries, keys, values and positions as well as for the
output. `mapping` expects the [out, in] of PyTorch's linear layers.
Source: `XLNetModel` of transformers and its heads.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from deberta_jax.config import DebertaConfig

from .errors import ConversionError, shorten

Reader = Callable[[], Any]  # returns a tensor

# Published name -> name in `mapping`. The longest prefix that fits is replaced.
_PREFIXES = {
    "transformer.": "deberta.",
    "word_embedding.": "deberta.embeddings.word_embeddings.",
    "mask_emb": "deberta.embeddings.mask_embedding.weight",
    "layer.": "deberta.encoder.layer.",
    "sequence_summary.summary.": "pooler.dense.",
    "logits_proj.": "classifier.",
    "lm_loss.bias": "lm_head.bias",
    "lm_loss.weight": "cls.predictions.decoder.weight",  # tied to the word embeddings
}
# Of a layer: published name -> name in `mapping`.
_LAYER = {
    ".rel_attn.q": ".attention.self.query_proj.weight",
    ".rel_attn.k": ".attention.self.key_proj.weight",
    ".rel_attn.v": ".attention.self.value_proj.weight",
    ".rel_attn.r": ".attention.self.pos_key_proj.weight",
    ".rel_attn.o": ".attention.output.dense.weight",
    ".rel_attn.r_w_bias": ".attention.self.content_bias.weight",
    ".rel_attn.r_r_bias": ".attention.self.position_bias.weight",
    ".rel_attn.r_s_bias": ".attention.self.segment_bias.weight",
    ".rel_attn.seg_embed": ".attention.self.segment_keys",
    ".rel_attn.layer_norm.weight": ".attention.output.LayerNorm.weight",
    ".rel_attn.layer_norm.bias": ".attention.output.LayerNorm.bias",
    ".ff.layer_1.weight": ".intermediate.dense.weight",
    ".ff.layer_1.bias": ".intermediate.dense.bias",
    ".ff.layer_2.weight": ".output.dense.weight",
    ".ff.layer_2.bias": ".output.dense.bias",
    ".ff.layer_norm.weight": ".output.LayerNorm.weight",
    ".ff.layer_norm.bias": ".output.LayerNorm.bias",
}
_INPUT_PROJECTIONS = tuple(name for old, name in _LAYER.items() if re.fullmatch(r"\.rel_attn\.[qkvr]", old))
_OUTPUT_PROJECTION = _LAYER[".rel_attn.o"]
_MASK = _PREFIXES["mask_emb"]
_BEAM_SEARCH = ("start_logits.", "end_logits.", "answer_class.")


def to_deberta_layout(state: Mapping[str, Reader], config: DebertaConfig) -> list[tuple[str, Reader]]:
    """Returns each tensor's reader with its name in `mapping`, in the layout of a linear layer.

    Unknown keys are unchanged, and `mapping` reports them.
    """
    return [
        (name, functools.partial(_as_linear, read, key, name, config))
        for key, read in state.items()
        for name in [_rename(key)]
    ]


def check_heads(names: Iterable[str]) -> None:
    """Raises ConversionError if the weights have the head for spans that searches with beams."""
    beams = sorted(name for name in names if name.startswith(_BEAM_SEARCH))
    if beams:
        raise ConversionError(
            f"these weights have {shorten(beams)}, XLNet's head for spans that searches with beams "
            "(XLNetForQuestionAnswering), which this library does not have; it reads XLNetForQuestionAnsweringSimple. "
            "To convert the encoder alone, give include 'deberta'"
        )


def from_deberta_layout(state: Mapping[str, np.ndarray], config: DebertaConfig) -> dict[str, np.ndarray]:
    """Returns each array with its published name and layout, the inverse of `to_deberta_layout`.

    A classifier without a pooler is that of tokens, which keeps its name.
    """
    names = {ours: theirs for theirs, ours in _LAYER.items()}
    published = {}
    for key, array in state.items():
        match = re.fullmatch(r"deberta\.encoder\.(layer\.\d+)(\..*)", key)
        if match:
            name = f"transformer.{match[1]}{names[match[2]]}"
        elif key.startswith("deberta.embeddings."):
            name = key.replace("deberta.embeddings.word_embeddings", "transformer.word_embedding")
            name = name.replace(_MASK, "transformer.mask_emb")
        elif key.startswith("classifier.") and "pooler.dense.weight" in state:
            name = key.replace("classifier.", "logits_proj.")
        else:
            name = key.replace("pooler.dense.", "sequence_summary.summary.").replace("lm_head.", "lm_loss.")
        published[name] = _as_published(array, key, config)
    return published


def _rename(key: str) -> str:
    key = key.removeprefix("transformer.")
    prefix = max((prefix for prefix in _PREFIXES if key.startswith(prefix)), key=len, default="")
    name = _PREFIXES.get(prefix, "") + key.removeprefix(prefix)
    match = re.fullmatch(r"(deberta\.encoder\.layer\.\d+)(\..*)", name)
    return match[1] + _LAYER.get(match[2], match[2]) if match else name


def _as_linear(read: Reader, key: str, name: str, config: DebertaConfig) -> Any:
    array = read()
    by_head = (config.hidden_size, config.num_attention_heads, config.attention_head_size)
    is_input, is_output = name.endswith(_INPUT_PROJECTIONS), name.endswith(_OUTPUT_PROJECTION)
    shape = by_head if is_input or is_output else (1, 1, config.hidden_size) if name == _MASK else None
    if shape is None:
        return array
    if tuple(np.shape(array)) != shape:
        raise ConversionError(f"{key} has shape {tuple(np.shape(array))}, but the configuration requires {shape}")
    if name == _MASK:
        return array.reshape(1, -1)
    flat = array.reshape(config.hidden_size, -1)
    return flat.T if is_input else flat


def _as_published(array: Float[np.ndarray, "..."], name: str, config: DebertaConfig) -> Float[np.ndarray, "..."]:
    by_head = (config.hidden_size, config.num_attention_heads, config.attention_head_size)
    if name.endswith(_INPUT_PROJECTIONS):
        return array.T.reshape(by_head)
    if name.endswith(_OUTPUT_PROJECTION):
        return array.reshape(by_head)
    return array.reshape(1, 1, -1) if name == _MASK else array
