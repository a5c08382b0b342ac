"""Removes the quirks of published PyTorch files, one function each, before `mapping` reads them.

These are version 1's interleaved projections, old prefixes and names, tied decoders and stray buffers. The result has
the names that the official code uses for version 2, which are those of `mapping.TABLE`.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float

from deberta_jax.config import DebertaConfig

from .baseline_names import to_deberta_names
from .errors import ConversionError, shorten
from .xlnet_names import check_heads, to_deberta_layout

LazyState = dict[str, Callable[[], Any]]  # name -> function that reads the tensor: a file is never in memory twice

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
_TENSORFLOW_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}  # BERT's files
_MISSPELLED_NAMES = {"mask_predictions.classifer.": "mask_predictions.classifier."}  # official code of RTD


def adapt_heads(config: DebertaConfig, names: Collection[str]) -> DebertaConfig:
    """Returns the configuration with the forms of heads that the parameter names of a file imply.

    A masked LM head: names with `cls.predictions` mean "legacy". transformers drops the position table where the input
    does not use it, and without that table the enhanced mask decoder ("emd") cannot run, so the form is then "bert".
    Configurations of baselines, which have one form each, and of files without a masked LM head keep theirs.

    Token classification: the dense layer `proj` of Microsoft's head means `token_projection`.
    """
    config = config.replace(token_projection="proj.weight" in names)
    form = config.mlm_head
    if config.model_type != "deberta":
        return config
    if any("cls.predictions." in name for name in names):
        form = "legacy"
    elif any("lm_predictions." in name for name in names):
        has_positions = any("position_embeddings." in name for name in names)
        form = "emd" if has_positions and form == "emd" else "bert"
    return config.replace(mlm_head=form)


def remove_quirks(state: LazyState, config: DebertaConfig, *, encoder_only: bool = False) -> LazyState:
    """Returns the tensors of a published file under the names, and in the layout, of `mapping.TABLE`.

    Args:
      state: The tensors.
      config: Configuration of the model.
      encoder_only: Drop everything that does not belong to the encoder.

    Raises:
      ConversionError: A parameter is present under an old and a new name, or a tied decoder has other values than the
        word embeddings.
    """
    state = _drop_bookkeeping(state)
    if config.model_type == "xlnet":
        if not encoder_only:
            check_heads(state)
        state = _as_dict(to_deberta_layout(state, config))
    elif config.model_type != "deberta":
        state = _as_dict(to_deberta_names(state, config))
    state = _split_v1_projections(state, config)
    state = _rename_old_keys(state)
    if encoder_only:
        state = {key: read for key, read in state.items() if key.startswith("deberta.")}
    state = _drop_tied_decoder(state, config)
    return _drop_delta_beside_sum(state)


def _drop_bookkeeping(state: LazyState) -> LazyState:
    """Drops the `config` of old pickles, and the buffer `position_ids` that old versions of transformers saved."""
    return {key: read for key, read in state.items() if key != "config" and key.split(".")[-1] != "position_ids"}


def _split_v1_projections(state: LazyState, config: DebertaConfig) -> LazyState:
    """Splits version 1's `in_proj` into query, key and value, and adds zeros for the key biases that it does not have.

    Source: `DisentangledSelfAttention._pre_load_hook` in the official code, which leaves these biases at their initial
    value, zero.
    """
    heads, head_size = config.num_attention_heads, config.attention_head_size
    zeros = functools.partial(np.zeros, heads * head_size, np.float32)

    def projection(key: str, part: int) -> Float[np.ndarray, "projection D"]:
        array = check_array(state[key](), key, (3 * heads * head_size, config.hidden_size))
        return array.reshape(heads, 3, head_size, -1)[:, part].reshape(heads * head_size, -1)

    split: LazyState = {}
    for key in state:
        prefix, _, name = key.rpartition(".attention.self.")
        prefix = f"{prefix}.attention.self."
        if name == "in_proj.weight":
            for part, module in enumerate(("query_proj", "key_proj", "value_proj")):
                split[f"{prefix}{module}.weight"] = functools.partial(projection, key, part)
            split[f"{prefix}key_proj.bias"] = zeros
        elif name == "pos_proj.weight":
            split[f"{prefix}pos_key_proj.bias"] = zeros
    _check_unique(split.keys() & state.keys())
    return {key: read for key, read in state.items() if not key.endswith(".attention.self.in_proj.weight")} | split


def _rename_old_keys(state: LazyState) -> LazyState:
    """Replaces prefixes and names of older releases, of encoders saved alone, and of transformers' legacy MLM head."""
    names = {**_TENSORFLOW_NAMES, **V1_NAMES, **LEGACY_MLM_HEAD, **_MISSPELLED_NAMES}
    renamed = []
    for key, read in state.items():
        prefix = next((old for old in _OLD_PREFIXES if key.startswith(old)), "")
        name = _OLD_PREFIXES.get(prefix, "") + key.removeprefix(prefix)
        for old, new in names.items():
            name = name.replace(old, new)
        renamed.append((name, read))
    return _as_dict(renamed)


def _as_dict(items: Iterable[tuple[str, Callable[[], Any]]]) -> LazyState:
    items = list(items)
    _check_unique({name for name, count in Counter(name for name, _ in items).items() if count > 1})
    return dict(items)


def _check_unique(names: Collection[str]) -> None:
    if names:
        raise ConversionError(
            f"these weights contain twice, under an old name and a new one: {shorten(sorted(names))}; remove one of "
            "the two"
        )


def _drop_tied_decoder(state: LazyState, config: DebertaConfig) -> LazyState:
    """Drops a decoder that equals the word embeddings or the head's bias; any other decoder is an error."""
    state = dict(state)
    table, bias = "deberta.embeddings.word_embeddings.weight", "lm_predictions.lm_head.bias"
    if bias not in state and "cls.predictions.decoder.bias" in state:
        state[bias] = state.pop("cls.predictions.decoder.bias")
    shapes = {table: (config.vocab_size, config.embedding_size), bias: (config.vocab_size,)}
    for decoder, tied in (("cls.predictions.decoder.weight", table), ("cls.predictions.decoder.bias", bias)):
        if decoder in state and tied in state:
            first, second = (check_array(state[key](), key, shapes[tied]) for key in (decoder, tied))
            if not np.array_equal(first, second):
                raise ConversionError(f"{decoder} differs from {tied}; only a tied decoder can be converted")
            del state[decoder]
    return state


def _drop_delta_beside_sum(state: LazyState) -> LazyState:
    """Drops the GDES difference `_weight` where the file also has `weight`, the sum with the generator's table."""
    deltas = {key for key in state if key.endswith("._weight") and key.replace("._weight", ".weight") in state}
    return {key: read for key, read in state.items() if key not in deltas}


def check_array(array: Any, name: str, shape: tuple[int | None, ...]) -> Any:
    """Returns the array if it has this shape (`None`: any size) and a floating-point type.

    Raises:
      ConversionError: It has another shape or type, or is not an array.
    """
    if not hasattr(array, "shape") or array.dtype not in _FLOATS:
        kind = getattr(array, "dtype", type(array).__name__)
        if hasattr(array, "shape") and np.dtype(kind).itemsize == 1:
            raise quantized_error(name, str(kind))
        raise ConversionError(f"{name} is {kind}; it must be an array of float64, float32, float16 or bfloat16")
    actual = tuple(array.shape)
    if len(actual) != len(shape) or any(size not in (None, have) for size, have in zip(shape, actual, strict=True)):
        expected = tuple("any" if size is None else size for size in shape)
        raise ConversionError(f"{name} has shape {actual}, but the configuration requires {expected}")
    return array


def quantized_error(name: str, kind: str) -> ConversionError:
    return ConversionError(
        f"{name} is {kind}; quantized weights are not supported: use the original weights, in float32, float16 or "
        "bfloat16"
    )
