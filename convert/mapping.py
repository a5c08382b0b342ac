"""One bijective table of parameter names: PyTorch's and deberta-jax's. The only transform reverses a kernel's axes.

PyTorch's names are those of the official code and of transformers. `quirks` removes what published files do
differently, and `baseline_names` renames the parameters of BERT, RoBERTa and ELECTRA, before the table is used.
`xlnet_names` renames the parameters of XLNet, which have their own table.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from deberta_jax.config import DebertaConfig

from .errors import ConversionError, shorten
from .quirks import LazyState, check_array, remove_quirks

Params = dict[str, Any]  # nested dict of arrays
Need = Literal["required", "optional", "absent"]


_WORDS, _POSITIONS = "deberta/embeddings/word_embeddings", "deberta/embeddings/position_embeddings"


# ------------------------------------------------------------------------------------------------------- the table


def _always(config: DebertaConfig) -> Need:
    return "required"


def _optional(config: DebertaConfig) -> Need:
    return "optional"


def _only_if(condition: Callable[[DebertaConfig], bool]) -> Callable[[DebertaConfig], Need]:
    return lambda config: "required" if condition(config) else "absent"


def _position_table(config: DebertaConfig) -> Need:
    return "required" if config.position_biased_input else "optional"  # transformers drops an unused table


def _relative_norm(config: DebertaConfig) -> Need:
    if config.norm_rel_ebd == "none":
        return "absent"
    return "required" if config.relative_attention else "optional"  # unused in the official BERT baseline


_token_types = _only_if(lambda c: c.type_vocab_size > 0)
_projected = _only_if(lambda c: c.embedding_size != c.hidden_size)
_projected_with_bias = _only_if(lambda c: c.embedding_size != c.hidden_size and c.projects_normalized_embeddings)
_relative = _only_if(lambda c: c.relative_attention)
_convolution = _only_if(lambda c: c.conv_kernel_size > 0)
_reads_first_token = _only_if(lambda c: c.rtd_reads_first_token)
_next_sentence = _only_if(lambda c: c.model_type == "bert")
_separate_pos_key = _only_if(lambda c: c.relative_attention and not c.share_att_key and "c2p" in c.pos_att_type)
_separate_pos_query = _only_if(lambda c: c.relative_attention and not c.share_att_key and "p2c" in c.pos_att_type)

_LINEAR = (("weight", "kernel"), ("bias", "bias"))
_KERNEL = (("weight", "kernel"),)
_BIAS = (("bias", "bias"),)
_NORM = (("weight", "scale"), ("bias", "bias"))
_LOOKUP = (("weight", "embedding"),)
_DELTA = (("_weight", "delta"),)  # GDES: the discriminator's difference to the generator's table

# Each group has its two prefixes, then one row per module: PyTorch's name, path in the parameter tree, leaves, sizes of
# the weight in PyTorch's order (a bias has the first of them), and whether a model has the module. The rows of a head
# apply only if the weights contain any part of that head.
# Sizes: V vocabulary, E embedding size, D hidden size, N width of the embeddings' LayerNorm, P positions, T token
# types, R relative table, A heads x head size, F feed-forward size, G hidden size / convolution groups, K convolution
# kernel, C classes.
TABLE = (
    (
        ("deberta.embeddings.", "deberta/embeddings/"),
        ("word_embeddings", "word_embeddings", _LOOKUP, "VE", _always),
        ("word_embeddings", "word_embeddings", _DELTA, "VE", _optional),
        ("position_embeddings", "position_embeddings", _LOOKUP, "PE", _position_table),
        ("position_embeddings", "position_embeddings", _DELTA, "PE", _optional),
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
        ("attention.self.pos_key_proj", "attention/pos_key_proj", _LINEAR, "AD", _separate_pos_key),
        ("attention.self.pos_query_proj", "attention/pos_query_proj", _LINEAR, "AD", _separate_pos_query),
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
# XLNet's. Further sizes: Y heads, H head size.
_PLAIN = (("", ""),)  # an array that is no part of a module
_WEIGHT_AS_BIAS = (("weight", "bias"),)
XLNET_TABLE = (
    (
        ("deberta.embeddings.", "deberta/embeddings/"),
        ("word_embeddings", "word_embeddings", _LOOKUP, "VD", _always),
        ("mask_embedding", "mask_embedding", _LOOKUP, "1D", _always),
    ),
    (
        ("deberta.encoder.layer.{i}.", "deberta/encoder/layer_{i}/"),
        ("attention.self.query_proj", "attention/query_proj", _KERNEL, "AD", _always),
        ("attention.self.key_proj", "attention/key_proj", _KERNEL, "AD", _always),
        ("attention.self.value_proj", "attention/value_proj", _KERNEL, "AD", _always),
        ("attention.self.pos_key_proj", "attention/pos_key_proj", _KERNEL, "AD", _always),
        ("attention.self.content_bias", "attention/content_bias", _WEIGHT_AS_BIAS, "YH", _always),
        ("attention.self.position_bias", "attention/position_bias", _WEIGHT_AS_BIAS, "YH", _always),
        ("attention.self.segment_bias", "attention/segment_bias", _WEIGHT_AS_BIAS, "YH", _always),
        ("attention.self.segment_keys", "attention/segment_keys", _PLAIN, "2YH", _always),
        ("attention.output.dense", "attention/output", _KERNEL, "DA", _always),
        ("attention.output.LayerNorm", "attention/layer_norm", _NORM, "D", _always),
        ("intermediate.dense", "feed_forward/intermediate", _LINEAR, "FD", _always),
        ("output.dense", "feed_forward/output", _LINEAR, "DF", _always),
        ("output.LayerNorm", "feed_forward/layer_norm", _NORM, "D", _always),
    ),
    (
        ("", ""),
        ("pooler.dense", "pooler/dense", _LINEAR, "DD", _always),
        ("classifier", "classifier", _LINEAR, "CD", _always),
        ("qa_outputs", "span_classifier", _LINEAR, "2D", _always),
        ("lm_head", "permutation_lm_head", _BIAS, "V", _always),
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
    "next_sentence_head",  # BERT's; no model of this library uses it, but export writes it back
    "permutation_lm_head",  # XLNet's, likewise
)


class Entry(NamedTuple):
    """One array of a model.

    Attributes:
      key: its name in PyTorch's state dict.
      path: its path in the parameter tree, with slashes.
      torch_shape: its shape in PyTorch; `None` allows any size.
      need: whether weights must contain it.
    """

    key: str
    path: str
    torch_shape: tuple[int | None, ...]
    need: Need

    @property
    def part(self) -> str:
        """One of PARTS."""
        return self.path.split("/")[0]

    def swap_layout(self, array: Any) -> Any:
        """Converts PyTorch's axis order to Flax's or back: kernels, [out, in] or [out, in, k], reverse their axes."""
        return array.T if self.path.endswith("/kernel") else array

    @property
    def flax_shape(self) -> tuple[int | None, ...]:
        """Its shape in the parameter tree."""
        return self.torch_shape[::-1] if self.path.endswith("/kernel") else self.torch_shape


def entries(config: DebertaConfig) -> list[Entry]:
    """Returns the table for one model: every array that its encoder and any head may have."""
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
        "Y": config.num_attention_heads,
        "H": config.attention_head_size,
        "1": 1,
        "2": 2,
    }
    table = []
    for (key_prefix, path_prefix), *rows in XLNET_TABLE if config.model_type == "xlnet" else TABLE:
        for i in range(config.num_hidden_layers) if "{i}" in key_prefix else (0,):
            for key, path, leaves, letters, need in rows:
                for torch_leaf, flax_leaf in leaves:
                    shape = tuple(sizes[letter] for letter in (letters[:1] if torch_leaf == "bias" else letters))
                    full_key = f"{key_prefix}{key}.{torch_leaf}".removesuffix(".").replace("{i}", str(i))
                    full_path = f"{path_prefix}{path}/{flax_leaf}".removesuffix("/").replace("{i}", str(i))
                    table.append(Entry(full_key, full_path, shape, need(config)))
    return [entry for entry in table if entry.need != "absent"]


# ----------------------------------------------------------------------------------------------- the two directions


def to_params(
    state_dict: Mapping[str, Any],
    config: DebertaConfig,
    *,
    include: Collection[str] | None = None,
    shared_embeddings: bool = False,
) -> Params:
    """Converts a PyTorch state dict to a parameter tree; the inverse of `to_state_dict`, bit for bit up to float32.

    Args:
      state_dict: Maps names to arrays of 16-, 32- or 64-bit floats, in any published layout. Values are read one by
        one, so a mapping that reads lazily keeps memory low.
      config: Configuration of the model. Its number of classes is ignored: the classifier's own is used.
      include: The parts to return, from `PARTS`; the weights must contain each of them (default: every part that the
        weights contain). With only "deberta", keys that do not belong to the encoder are ignored.
      shared_embeddings: Allow the word and position tables to be missing (the discriminator of an ES pair).

    Returns:
      A nested dict of new float32 arrays. A table of GDES differences is called `delta` instead of `embedding`.

    Raises:
      ConversionError: Keys that no parameter uses or parameters that no key fills (the message lists both), a wrong
        shape or type, or a part of `include` that the weights do not contain.
    """
    state = remove_quirks(
        {key: functools.partial(state_dict.__getitem__, key) for key in state_dict},
        config,
        encoder_only=set(include or ()) == {"deberta"},
    )
    _check_layers(state, config)
    table = {entry.key: entry for entry in entries(config)}
    present = _check_complete(state, table, shared_embeddings=shared_embeddings)
    absent = set() if include is None else set(include) - present
    if absent:
        raise ConversionError(f"no {shorten(sorted(absent))} in these weights; they have {shorten(sorted(present))}")
    params: Params = {}
    for key, entry in table.items():
        if key in state and (include is None or entry.part in include):
            array = check_array(state[key](), key, entry.torch_shape)
            _insert(params, entry.path, _as_float32(entry.swap_layout(array), key))
    _check_classes(params)
    return params


def to_state_dict(
    params: Mapping[str, Any], config: DebertaConfig, *, shared_embeddings: bool = False
) -> dict[str, np.ndarray]:
    """Converts a parameter tree to a state dict with the official DeBERTa names, which `to_params` reads back exactly.

    Args:
      params: Nested dict of a complete encoder and any number of complete heads.
      config: Configuration of the model.
      shared_embeddings: As in `to_params`.

    Returns:
      A dict of arrays by name. Dtypes are kept. NumPy arrays share their memory with `params`; kernels are transposed
      views.

    Raises:
      ConversionError: Parameters are missing or unexpected, or an array has a wrong shape or type.
    """
    arrays = _flatten(params)
    table = {entry.path: entry for entry in entries(config)}
    _check_complete(arrays, table, shared_embeddings=shared_embeddings)
    state = {}
    for path, entry in table.items():
        if path in arrays:
            state[entry.key] = entry.swap_layout(np.asarray(check_array(arrays[path], path, entry.flax_shape)))
    _check_classes(params)
    return state


def _check_layers(state: LazyState, config: DebertaConfig) -> None:
    """Raises unless weights and configuration have the same number of layers.

    It runs before `entries`, which would exhaust memory if a damaged configuration asked for a billion layers.
    """
    layers = {match[1] for match in map(re.compile(r"deberta\.encoder\.layer\.(\d+)\.").match, state) if match}
    if len(layers) != config.num_hidden_layers:
        raise ConversionError(
            f"these weights have {len(layers)} layers, but the configuration says num_hidden_layers "
            f"{config.num_hidden_layers}; use the config.json that belongs to them"
        )


def _check_complete(names: Iterable[str], table: Mapping[str, Entry], *, shared_embeddings: bool) -> set[str]:
    """Returns the parts that `names` contain, and raises if names are missing or unexpected.

    Args:
      names: PyTorch's keys or paths of the parameter tree.
      table: Keyed by the same kind of names.
    """
    names = set(names)
    filled = {table[name].path for name in names & table.keys()}
    present = {"deberta"} | {path.split("/")[0] for path in filled}
    not_needed = {path for path in (_WORDS, _POSITIONS) if shared_embeddings or f"{path}/delta" in filled}
    missing = [
        name
        for name, entry in table.items()
        if entry.need == "required" and entry.part in present and entry.path not in filled
        if entry.path.removesuffix("/embedding") not in not_needed
    ]
    unexpected = sorted(names - table.keys())
    if missing or unexpected:
        raise ConversionError(
            f"weights and configuration do not match; missing: {shorten(missing)}; unexpected: {shorten(unexpected)}"
        )
    return present


def _as_float32(array: Float[np.ndarray, "*shape"], key: str) -> Float[np.ndarray, "*shape"]:
    """Returns a new array of the same values; float64 is rounded, and an overflow raises."""
    with np.errstate(over="ignore"):
        values = np.array(array, np.float32, order="C")
    if array.dtype == np.float64 and np.any(np.isinf(values) & np.isfinite(array)):
        raise ConversionError(f"{key} has values that float32 cannot hold")
    return values


def _check_classes(params: Mapping[str, Any]) -> None:
    """Raises if the classifier's kernel and bias have different numbers of classes, which the table leaves open."""
    if "classifier" in params:
        (_, columns), (size,) = params["classifier"]["kernel"].shape, params["classifier"]["bias"].shape
        if columns != size:
            raise ConversionError(f"classifier.weight is for {columns} classes, but classifier.bias for {size}")


def _insert(tree: Params, path: str, value: Any) -> None:
    *parents, leaf = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
