"""Finds one model in what other libraries save: under prefixes, beside foreign layers, inside a training state."""

import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ConversionError, shorten

_LOG = logging.getLogger("deberta_jax")

# Parts of a name that torch.compile, DataParallel, FSDP and Lightning insert, anywhere.
_WRAPPERS = frozenset("_orig_mod module _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module".split())
# A name of the first layer; everything before the name of the family is a prefix. Every model has it, a word table not.
_FIRST_LAYER = re.compile(
    r"(?P<prefix>(?:.*?\.)??)(?:(?:(?:deberta|bert|roberta|electra)\.)?encoder\.layer\.0\.attention\."
    r"|(?:transformer\.)?layer\.0\.rel_attn\.)"  # XLNet's
)
_ADAPTERS = re.compile(r"(^|\.)(lora_\w+|ia3_l|base_layer|modules_to_save|original_module|adapters|prompt_encoder)\.")
_QUANTIZED = re.compile(
    r"\.(SCB|weight_format|q?weight\.(absmax|quant_map|quant_state.*|nested_.*)|qweight|qzeros|g_idx|scales"
    r"|weight_scale(_inv)?|weight_packed|weight_zero_point|input_scale|_data|_scale)$"
)
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module")  # the usual names, the most telling first
_DEEPEST = 3  # level of a state dict in a training state


def find_state_dict(saved: Any) -> Any:
    """Returns the state dict in a training state such as {"model": ..., "optimizer": ...}, else what was saved.

    Raises:
      ConversionError: several state dicts of a model, none with one of the usual names.
    """
    found: dict[str, Any] = {}
    level, seen = [("", saved)], set()
    for _ in range(_DEEPEST):
        level = [(path, value) for path, value in level if isinstance(value, dict) and id(value) not in seen]
        seen |= {id(value) for _, value in level}  # a damaged pickle can contain itself
        found |= {
            path: value
            for path, value in level
            if any(isinstance(key, str) and _FIRST_LAYER.match(key) for key in value)
        }
        if found:
            break
        level = [(f"{path}.{key}".strip("."), item) for path, value in level for key, item in value.items()]
    chosen = next((path for name in _CONTAINERS for path in found if path.split(".")[-1] == name), "")
    if len(found) > 1 and not chosen:
        raise ConversionError(
            f"it contains several models, {shorten(sorted(found))}; save the state dict of one of them alone"
        )
    path, state = next(((path, found[path]) for path in found if len(found) == 1 or path == chosen), ("", saved))
    if path:
        _LOG.warning("the weights are those under %r; the rest of the file is not used", path)
    return state


def remove_prefixes(state: Mapping[str, Any], *, encoder_only: bool = False) -> dict[str, Callable[[], Any]]:
    """Returns functions that read the tensors of a model, under names without the prefixes of other libraries.

    A prefix that was removed is named in the log.

    Args:
      state: names and tensors, in any container.
      encoder_only: leaves out all names beside the prefix of the encoder.

    Raises:
      ConversionError: several encoders, adapters that are not merged, quantized weights, or a name that is present
        with and without the prefix.
    """
    _check_original(state)
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in state}
    prefixes = {match["prefix"] for match in map(_FIRST_LAYER.match, names.values()) if match}
    if len(prefixes) > 1:
        raise ConversionError(
            f"these weights contain several encoders, under {shorten(sorted(prefixes))}; save the one alone"
        )
    prefix = next(iter(prefixes), "")
    while (shared := prefix.partition(".")[0] + ".") != "." and all(name.startswith(shared) for name in names.values()):
        names = {original: name.removeprefix(shared) for original, name in names.items()}
        prefix = prefix.removeprefix(shared)
    if prefix:  # only the encoder has it; a head may have names without it
        inside = {original for original, name in names.items() if name.startswith(prefix)}
        names = {
            original: name.removeprefix(prefix)
            for original, name in names.items()
            if original in inside or not encoder_only
        }
    if len(set(names.values())) < len(names):
        twice = sorted(name for name in state if list(names.values()).count(names.get(name, name)) > 1)
        raise ConversionError(f"these weights contain twice, with a prefix and without: {shorten(twice)}")
    removed = sorted({_removed(original, name) for original, name in names.items()} - {""})
    if removed:
        _LOG.warning("removed from the names of the weights: %s", shorten(removed))
    return {name: functools.partial(state.__getitem__, original) for original, name in names.items()}


def _removed(original: str, name: str) -> str:
    """Returns what `original` has before `name`, or the wrappers inside it."""
    if original.endswith(name):
        return original.removesuffix(name)
    return ".".join(part for part in original.split(".") if part in _WRAPPERS) + "."


def _check_original(names: Mapping[str, Any]) -> None:
    """Raises if the weights are not those of a plain model."""
    adapters = sorted(name for name in names if _ADAPTERS.search(name))
    if adapters:
        raise ConversionError(
            f"these weights contain an adapter that is not merged: {shorten(adapters)}; call merge_and_unload() of "
            "peft and save its result"
        )
    quantized = sorted(name for name in names if _QUANTIZED.search(name))
    if quantized:
        raise ConversionError(
            f"these weights are quantized: {shorten(quantized)}; use the original weights, in float32, float16 or "
            "bfloat16"
        )
