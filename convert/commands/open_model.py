"""Opens any model that can be named on the command line, and the options that name it."""

import dataclasses

import tyro

from deberta_jax.checkpoint import holds_model
from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..from_pytorch import find_folder, load_pytorch


@dataclasses.dataclass(frozen=True)
class ModelAndText:
    """Options of every command that applies a model to a text."""

    model: tyro.conf.Positional[str]
    """Folder of a model (deberta-jax or PyTorch), or a hub name such as microsoft/deberta-v3-base"""
    text: tyro.conf.Positional[str]
    """The text"""
    filename: str | None = None
    """PyTorch weight file, e.g. pytorch_model.generator.bin (default: the usual names)"""


def open_model(source: str, *, filename: str | None = None) -> LoadedModel:
    """Opens a deberta-jax folder, or a folder or hub name with PyTorch files.

    Args:
      source: The folder or hub name.
      filename: Name of the PyTorch weight file, as in `load_pytorch`.

    Raises:
      MissingFileError: The folder does not exist, or lacks weights, configuration or tokenizer.
      ConversionError: The PyTorch weights are damaged or do not match the configuration.
      UserError: The configuration or the tokenizer is invalid, or as `LoadedModel`.
    """
    if holds_model(source) and filename is None:
        return LoadedModel.from_folder(source)
    folder = find_folder(source, filename=filename)
    config, params = load_pytorch(folder, filename=filename)
    return LoadedModel(source, config, params, Tokenizer.from_folder(folder))
