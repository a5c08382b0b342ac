"""Oddities of published PyTorch files, straightened out in front of the table: each a function of its own.

Version 1's interleaved projections, old prefixes, tied decoders, stray buffers. What comes out has the official code's
names of version 2, which `mapping.TABLE` knows.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError

from . import baseline_names as baselines

State = dict[str, Callable[[], Any]]  # name -> reads the tensor when asked, so that a file is never in memory twice

_FLOATS = tuple(np.dtype(kind) for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))
_OLD_PREFIXES = {"bert.": "deberta.", "embeddings.": "deberta.embeddings.", "encoder.": "deberta.encoder."}
LEGACY_MLM_HEAD = {
    "cls.predictions.transform.dense.": "lm_predictions.lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_predictions.lm_head.LayerNorm.",
    "cls.predictions.bias": "lm_predictions.lm_head.bias",
}
V1_NAMES = {
    ".attention.self.q_bias": ".attention.self.query_proj.bias",
    ".attention.self.v_bias": ".attention.self.value_proj.bias",
    ".attention.self.pos_proj.": ".attention.self.pos_key_proj.",
    ".attention.self.pos_q_proj.": ".attention.self.pos_query_proj.",
}
_TENSORFLOW_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}  # of BERT's files


class ConversionError(UserError):
    """Weights that do not fit: damaged, incomplete, of the wrong shape, or not expressible on the other side."""


def masked_lm_form(names: Collection[str], config: DebertaConfig) -> DebertaConfig:
    """The configuration with the form of masked LM head that a file's own names tell; the same one without such a head.

    A baseline has one form only. transformers drops the position table where the input lacks it, and without the table
    there is no enhanced mask decoder.
    """
    form = config.mlm_head
    if config.model_type != "deberta":
        return config
    if any("cls.predictions." in name for name in names):
        form = "legacy"
    elif any("lm_predictions." in name for name in names):
        has_positions = any("position_embeddings." in name for name in names)
        form = "emd" if has_positions and form == "emd" else "bert"
    return config.replace(mlm_head=form)


def normalize(state: State, config: DebertaConfig) -> State:
    state = _drop_bookkeeping(state)
    if config.model_type != "deberta":
        state = _as_dict(baselines.to_table(state, config))
    state = _split_v1_projections(state, config)
    state = _rename_old(state)
    state = _drop_tied_decoder(state, config)
    return _drop_delta_beside_sum(state)


def _drop_bookkeeping(state: State) -> State:
    """Old pickles hold their `config`; old transformers saved the buffer `position_ids`."""
    return {key: read for key, read in state.items() if key != "config" and key.split(".")[-1] != "position_ids"}


def _split_v1_projections(state: State, config: DebertaConfig) -> State:
    """Version 1: takes `in_proj` apart and adds the biases of keys, which version 1 has not, as zeros.

    Official code: `DisentangledSelfAttention._pre_load_hook`, which leaves those biases as they were initialized.
    """
    heads, size = config.num_attention_heads, config.attention_head_size
    zeros = functools.partial(np.zeros, heads * size, np.float32)

    def projection(key: str, part: int) -> np.ndarray:
        array = checked(state[key](), key, (3 * heads * size, config.hidden_size))
        return array.reshape(heads, 3, size, -1)[:, part].reshape(heads * size, -1)

    split: State = {}
    for key in state:
        prefix, _, name = key.rpartition(".attention.self.")
        prefix = f"{prefix}.attention.self."
        if name == "in_proj.weight":
            for part, ours in enumerate(("query_proj", "key_proj", "value_proj")):
                split[f"{prefix}{ours}.weight"] = functools.partial(projection, key, part)
            split[f"{prefix}key_proj.bias"] = zeros
        elif name == "pos_proj.weight":
            split[f"{prefix}pos_key_proj.bias"] = zeros
    _refuse_doubles(split.keys() & state.keys())
    return {key: read for key, read in state.items() if not key.endswith(".attention.self.in_proj.weight")} | split


def _rename_old(state: State) -> State:
    """Prefixes and names of older releases and bare encoders, and of transformers' default masked LM head."""
    anywhere = {
        **_TENSORFLOW_NAMES,
        **V1_NAMES,
        **LEGACY_MLM_HEAD,
        "mask_predictions.classifer.": "mask_predictions.classifier.",
    }
    renamed = []
    for key, read in state.items():
        prefix = next((old for old in _OLD_PREFIXES if key.startswith(old)), "")
        name = _OLD_PREFIXES.get(prefix, "") + key.removeprefix(prefix)
        for old, new in anywhere.items():
            name = name.replace(old, new)
        renamed.append((name, read))
    return _as_dict(renamed)


def _as_dict(items: Iterable[tuple[str, Callable[[], Any]]]) -> State:
    items = list(items)
    _refuse_doubles({name for name, count in Counter(name for name, _ in items).items() if count > 1})
    return dict(items)


def _refuse_doubles(names: Collection[str]) -> None:
    if names:
        raise ConversionError(f"these weights have twice, under an old name and a new one: {shorten(sorted(names))}")


def _drop_tied_decoder(state: State, config: DebertaConfig) -> State:
    """A decoder that repeats the word embeddings, or the head's bias, says nothing; another one cannot be kept."""
    state = dict(state)
    table, bias = "deberta.embeddings.word_embeddings.weight", "lm_predictions.lm_head.bias"
    if bias not in state and "cls.predictions.decoder.bias" in state:
        state[bias] = state.pop("cls.predictions.decoder.bias")
    shapes = {table: (config.vocab_size, config.embedding_size), bias: (config.vocab_size,)}
    for decoder, tied in (("cls.predictions.decoder.weight", table), ("cls.predictions.decoder.bias", bias)):
        if decoder in state and tied in state:
            first, second = (checked(state[key](), key, shapes[tied]) for key in (decoder, tied))
            if not np.array_equal(first, second):
                raise ConversionError(f"{decoder} differs from {tied}; only a tied decoder can be converted")
            del state[decoder]
    return state


def _drop_delta_beside_sum(state: State) -> State:
    """Where a GDES discriminator's file has the materialized sum `weight`, nothing needs the difference `_weight`."""
    deltas = {key for key in state if key.endswith("._weight") and key.replace("._weight", ".weight") in state}
    return {key: read for key, read in state.items() if key not in deltas}


def checked(array: Any, name: str, shape: tuple[int | None, ...]) -> Any:
    """The array, if it has `shape` (None: any size) and a type of floats."""
    if not hasattr(array, "shape") or array.dtype not in _FLOATS:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ConversionError(f"{name} is {kind}; it must be an array of float64, float32, float16 or bfloat16")
    got = tuple(array.shape)
    if len(got) != len(shape) or any(want not in (None, have) for want, have in zip(shape, got, strict=True)):
        expected = tuple("any" if size is None else size for size in shape)
        raise ConversionError(f"{name} has shape {got}, but the configuration asks for {expected}")
    return array


def shorten(names: Iterable[str]) -> str:
    """The names with the layers drawn together, at most eight of them."""
    counts = Counter(re.sub(r"(layer[._])\d+", r"\1*", name) for name in names)
    shown = [name if count == 1 else f"{name} ({count} times)" for name, count in list(counts.items())[:8]]
    more = [f"and {len(counts) - 8} more"] if len(counts) > 8 else []
    return ", ".join(shown + more) or "nothing"
