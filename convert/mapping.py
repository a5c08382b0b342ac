"""One bijective table between PyTorch's parameter names and ours; the only transform is reversing a kernel's axes.

Oddities of published files are straightened out before (`layouts`), and BERT's, RoBERTa's and ELECTRA's names replaced
(`baselines`). The names are those of the official code and of transformers.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from deberta_jax.config import DebertaConfig

from .quirks import ConversionError, State, checked, normalize, shorten

Params = dict[str, Any]  # nested dict of arrays
Need = Literal["required", "optional", "absent"]


_WORDS, _POSITIONS = "deberta/embeddings/word_embeddings", "deberta/embeddings/position_embeddings"


# ------------------------------------------------------------------------------------------------------- the table


def _always(config: DebertaConfig) -> Need:
    return "required"


def _maybe(config: DebertaConfig) -> Need:
    return "optional"


def _only_if(condition: Callable[[DebertaConfig], bool]) -> Callable[[DebertaConfig], Need]:
    return lambda config: "required" if condition(config) else "absent"


def _position_table(config: DebertaConfig) -> Need:
    return "required" if config.position_biased_input else "optional"  # transformers drops it where the input lacks it


def _relative_norm(config: DebertaConfig) -> Need:
    if config.norm_rel_ebd == "none":
        return "absent"
    return "required" if config.relative_attention else "optional"  # the original's BERT baseline has it, unused


_token_types = _only_if(lambda c: c.type_vocab_size > 0)
_projected = _only_if(lambda c: c.embedding_size != c.hidden_size)
_projected_with_bias = _only_if(lambda c: c.embedding_size != c.hidden_size and c.projects_normalized_embeddings)
_relative = _only_if(lambda c: c.relative_attention)
_convolution = _only_if(lambda c: c.conv_kernel_size > 0)
_reads_first_token = _only_if(lambda c: c.rtd_reads_first_token)
_next_sentence = _only_if(lambda c: c.model_type == "bert")
_own_pos_key = _only_if(lambda c: c.relative_attention and not c.share_att_key and "c2p" in c.pos_att_type)
_own_pos_query = _only_if(lambda c: c.relative_attention and not c.share_att_key and "p2c" in c.pos_att_type)

_LINEAR = (("weight", "kernel"), ("bias", "bias"))
_KERNEL = (("weight", "kernel"),)
_BIAS = (("bias", "bias"),)
_NORM = (("weight", "scale"), ("bias", "bias"))
_LOOKUP = (("weight", "embedding"),)
_DELTA = (("_weight", "delta"),)  # GDES: what the discriminator adds to the generator's table

# Prefixes, then one row per module: PyTorch's name, our path, leaves, the weight's dimensions in PyTorch's order (a
# bias has the first of them) and when a model has it; a head's rows are needed once the head appears at all.
# V vocabulary, E embedding size, D hidden size, N width of the embeddings' LayerNorm, P positions, T token types, R
# rows of the relative table, A heads x head size, F feed-forward size, G hidden size / convolution groups,
# K convolution kernel, C classes.
TABLE = (
    (
        ("deberta.embeddings.", "deberta/embeddings/"),
        ("word_embeddings", "word_embeddings", _LOOKUP, "VE", _always),
        ("word_embeddings", "word_embeddings", _DELTA, "VE", _maybe),
        ("position_embeddings", "position_embeddings", _LOOKUP, "PE", _position_table),
        ("position_embeddings", "position_embeddings", _DELTA, "PE", _maybe),
        ("token_type_embeddings", "token_type_embeddings", _LOOKUP, "TE", _token_types),
        ("embed_proj", "embed_proj", _KERNEL, "DE", _projected),
        ("embed_proj", "embed_proj", _BIAS, "D", _projected_with_bias),
        ("LayerNorm", "layer_norm", _NORM, "N", _always),
    ),
    (
        ("deberta.encoder.", "deberta/encoder/"),
        ("rel_embeddings", "rel_embeddings", _LOOKUP, "RD", _relative),
        ("LayerNorm", "layer_norm", _NORM, "D", _relative_norm),
        ("conv.conv", "conv/conv", _LINEAR, "DGK", _convolution),
        ("conv.LayerNorm", "conv/layer_norm", _NORM, "D", _convolution),
    ),
    (
        ("deberta.encoder.layer.{i}.", "deberta/encoder/layer_{i}/"),
        ("attention.self.query_proj", "attention/query_proj", _LINEAR, "AD", _always),
        ("attention.self.key_proj", "attention/key_proj", _LINEAR, "AD", _always),
        ("attention.self.value_proj", "attention/value_proj", _LINEAR, "AD", _always),
        ("attention.self.pos_key_proj", "attention/pos_key_proj", _LINEAR, "AD", _own_pos_key),
        ("attention.self.pos_query_proj", "attention/pos_query_proj", _LINEAR, "AD", _own_pos_query),
        ("attention.output.dense", "attention/output", _LINEAR, "DA", _always),
        ("attention.output.LayerNorm", "attention/layer_norm", _NORM, "D", _always),
        ("intermediate.dense", "feed_forward/intermediate", _LINEAR, "FD", _always),
        ("output.dense", "feed_forward/output", _LINEAR, "DF", _always),
        ("output.LayerNorm", "feed_forward/layer_norm", _NORM, "D", _always),
    ),
    (
        ("", ""),
        ("lm_predictions.lm_head.dense", "mlm_head/dense", _LINEAR, "ED", _always),
        ("lm_predictions.lm_head.LayerNorm", "mlm_head/layer_norm", _NORM, "E", _always),
        ("lm_predictions.lm_head", "mlm_head", _BIAS, "V", _always),
        ("mask_predictions.LayerNorm", "rtd_head/layer_norm", _NORM, "D", _reads_first_token),
        ("mask_predictions.dense", "rtd_head/dense", _LINEAR, "DD", _always),
        ("mask_predictions.classifier", "rtd_head/classifier", _LINEAR, "1D", _always),
        ("pooler.dense", "pooler/dense", _LINEAR, "DD", _always),
        ("classifier", "classifier", _LINEAR, "CD", _always),
        ("proj", "token_proj", _LINEAR, "DD", _always),
        ("qa_outputs", "span_classifier", _LINEAR, "2D", _always),
        ("cls.seq_relationship", "next_sentence_head/classifier", _LINEAR, "2D", _next_sentence),
    ),
)
PARTS = (
    "deberta",
    "mlm_head",
    "rtd_head",
    "pooler",
    "classifier",
    "token_proj",
    "span_classifier",
    "next_sentence_head",  # BERT's; no model here reads it, so that it only goes from file to file
)


class Entry(NamedTuple):
    """One array on both sides."""

    key: str
    path: str
    shape: tuple[int | None, ...]  # in PyTorch's order; None: any size
    need: Need

    @property
    def part(self) -> str:
        return self.path.split("/")[0]

    def swap_layout(self, array: Any) -> Any:
        """From PyTorch's axes to ours or back: kernels ([out, in], [out, in, k]) reverse theirs."""
        return array.T if self.path.endswith("/kernel") else array

    @property
    def our_shape(self) -> tuple[int | None, ...]:
        return self.shape[::-1] if self.path.endswith("/kernel") else self.shape


def entries(config: DebertaConfig) -> list[Entry]:
    """The table written out for one model: every array that its encoder and any head may have."""
    sizes: dict[str, int | None] = {
        "V": config.vocab_size,
        "E": config.embedding_size,
        "D": config.hidden_size,
        "N": config.normalized_embedding_size,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "R": 2 * config.att_span,
        "A": config.num_attention_heads * config.attention_head_size,
        "F": config.intermediate_size,
        "G": config.hidden_size // config.conv_groups,
        "K": config.conv_kernel_size,
        "C": None,
        "1": 1,
        "2": 2,
    }
    found = []
    for (key_prefix, path_prefix), *rows in TABLE:
        for i in range(config.num_hidden_layers) if "{i}" in key_prefix else (0,):
            for key, path, leaves, dims, need in rows:
                for theirs, ours in leaves:
                    shape = tuple(sizes[dim] for dim in (dims[:1] if theirs == "bias" else dims))
                    name = f"{key_prefix}{key}.{theirs}".replace("{i}", str(i))
                    place = f"{path_prefix}{path}/{ours}".replace("{i}", str(i))
                    found.append(Entry(name, place, shape, need(config)))
    return [entry for entry in found if entry.need != "absent"]


# ----------------------------------------------------------------------------------------------- the two directions


def to_params(
    state_dict: Mapping[str, Any],
    config: DebertaConfig,
    *,
    include: Collection[str] | None = None,
    shared_embeddings: bool = False,
) -> Params:
    """PyTorch's names and axes to ours; the inverse of `to_state_dict`, bit for bit up to float32.

    Args:
      state_dict: name -> array of floats of 16 to 64 bits, in any published layout; it may read lazily.
      config: the model that the arrays must be. The number of classes is the classifier's own.
      include: the parts to return (of `PARTS`), each of which must be there; None: all that are there.
      shared_embeddings: the word and position tables may be missing (the discriminator of an ES pair).

    Returns:
      Nested dict of new float32 arrays. A table that holds GDES differences is called `delta`, not `embedding`.

    Raises:
      ConversionError: a key that no parameter takes or a parameter that no key fills (all are listed), a wrong shape,
        a wrong type, or a part that is not there.
    """
    state = normalize({key: functools.partial(state_dict.__getitem__, key) for key in state_dict}, config)
    _check_layers(state, config)
    table = {entry.key: entry for entry in entries(config)}
    present = _check_complete(state, table, shared_embeddings=shared_embeddings)
    absent = set() if include is None else set(include) - present
    if absent:
        raise ConversionError(
            f"no {', '.join(sorted(absent))} in these weights; they have {', '.join(sorted(present))}"
        )
    params: Params = {}
    for key, entry in table.items():
        if key in state and (include is None or entry.part in include):
            array = checked(state[key](), key, entry.shape)
            _place(params, entry.path, _as_float32(entry.swap_layout(array), key))
    _check_classes(params)
    return params


def to_state_dict(
    params: Mapping[str, Any], config: DebertaConfig, *, shared_embeddings: bool = False
) -> dict[str, np.ndarray]:
    """Our names and axes to those of the official code; the inverse of `to_params`, bit for bit.

    Args:
      params: nested dict, all of the encoder and any number of whole heads.
      config: the model that the arrays must be.
      shared_embeddings: as in `to_params`.

    Returns:
      name -> array. Kernels are views of `params`.

    Raises:
      ConversionError: as in `to_params`.
    """
    arrays = _flatten(params)
    table = {entry.path: entry for entry in entries(config)}
    _check_complete(arrays, table, shared_embeddings=shared_embeddings)
    state = {}
    for path, entry in table.items():
        if path in arrays:
            state[entry.key] = entry.swap_layout(np.asarray(checked(arrays[path], path, entry.our_shape)))
    _check_classes(params)
    return state


def _check_layers(state: State, config: DebertaConfig) -> None:
    """Comes before the table is written out, so that a configuration with a billion layers costs nothing."""
    layers = {match[1] for match in map(re.compile(r"deberta\.encoder\.layer\.(\d+)\.").match, state) if match}
    if len(layers) != config.num_hidden_layers:
        raise ConversionError(
            f"these weights have {len(layers)} layers, but the configuration says num_hidden_layers "
            f"{config.num_hidden_layers}; use the config.json that belongs to them"
        )


def _check_complete(names: Iterable[str], table: Mapping[str, Entry], *, shared_embeddings: bool) -> set[str]:
    """Returns the parts that are there. `table` is keyed as `names` are: by PyTorch's names or by our paths."""
    names = set(names)
    filled = {table[name].path for name in names & table.keys()}
    present = {"deberta"} | {path.split("/")[0] for path in filled}
    replaced = {table for table in (_WORDS, _POSITIONS) if shared_embeddings or f"{table}/delta" in filled}
    missing = [
        name
        for name, entry in table.items()
        if entry.need == "required" and entry.part in present and entry.path not in filled
        if entry.path.removesuffix("/embedding") not in replaced
    ]
    unexpected = sorted(names - table.keys())
    if missing or unexpected:
        raise ConversionError(
            f"weights and configuration do not match; missing: {shorten(missing)}; unexpected: {shorten(unexpected)}"
        )
    return present


def _as_float32(array: Any, key: str) -> np.ndarray:
    """A new array, of the same values; only float64 is rounded."""
    with np.errstate(over="ignore"):
        values = np.array(array, np.float32, order="C")
    if array.dtype == np.float64 and np.any(np.isinf(values) & np.isfinite(array)):
        raise ConversionError(f"{key} has values that float32 cannot hold")
    return values


def _check_classes(params: Mapping[str, Any]) -> None:
    """The table leaves the number of classes open; the classifier's two arrays must still agree on it."""
    if "classifier" in params:
        (_, columns), (size,) = params["classifier"]["kernel"].shape, params["classifier"]["bias"].shape
        if columns != size:
            raise ConversionError(f"classifier.weight is for {columns} classes, but classifier.bias for {size}")


def _place(tree: Params, path: str, value: Any) -> None:
    *parents, leaf = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
