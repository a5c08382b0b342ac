"""Options of commands that apply a model to one text."""

import dataclasses

import tyro


@dataclasses.dataclass(frozen=True)
class ModelAndText:
    """Options of every command that applies a model to a text."""

    model: tyro.conf.Positional[str]
    """Folder of a model (deberta-jax or PyTorch), a hub name such as microsoft/deberta-v3-base, or deberta-v3-tiny"""
    text: tyro.conf.Positional[str]
    """The text"""
    filename: str | None = None
    """PyTorch weight file, e.g. pytorch_model.generator.bin (default: the usual names)"""
