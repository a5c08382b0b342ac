"""Settings of runs from flat keywords: a test names the options that it sets, not the groups they belong to."""

import dataclasses
import functools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from deberta_jax.train.configs import FinetuneConfig, Flat, PretrainConfig

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)
UNUSED = Path("unused")


def pretrain_config(**options: Any) -> PretrainConfig:
    """Returns the settings of `deberta-jax pretrain` with these options; those that are required have a default."""
    return _apply(PretrainConfig, _by_path(PretrainConfig, {"output": UNUSED, "tokenizer": UNUSED} | options))


def finetune_config(**options: Any) -> FinetuneConfig:
    """Returns the settings of `deberta-jax finetune` with these options; those that are required have a default."""
    required = {"output": UNUSED, "model": UNUSED, "train": str(UNUSED)}
    return _apply(FinetuneConfig, _by_path(FinetuneConfig, required | options))


def changed(config: Config, **options: Any) -> Config:
    """Returns the settings with other values of these options."""
    return _apply(config, _by_path(type(config), options))


def _by_path(settings: type, options: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    paths = dict(_option_paths(settings))
    return {paths[option]: value for option, value in options.items()}


def _option_paths(settings: type, parents: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the name of every option without a prefix and the path of its field."""
    hints = typing.get_type_hints(settings, include_extras=True)
    for field in dataclasses.fields(settings):
        group, *marks = typing.get_args(hints[field.name]) or (hints[field.name],)
        if Flat in marks:
            yield from _option_paths(group, (*parents, field.name))
        else:
            names = [mark.name for mark in marks if type(mark) is type(Flat)]
            yield (names or [field.name])[0], (*parents, field.name)


def _apply(base: Any, changes: dict[tuple[str, ...], Any]) -> Any:
    """Builds a class of settings, or replaces fields of an instance, from values by path."""
    groups: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *inner), value in changes.items():
        groups.setdefault(name, {})[tuple(inner)] = value
    is_class = isinstance(base, type)
    make = base if is_class else functools.partial(dataclasses.replace, base)
    values = {}
    for name, inner in groups.items():
        child = typing.get_type_hints(base)[name] if is_class else getattr(base, name)
        values[name] = inner[()] if () in inner else _apply(child, inner)
    return make(**values)
