"""Opens any model that can be named: a folder of this library, a folder of PyTorch files, or a hub name."""

import os
from pathlib import Path
from types import ModuleType

from ..checkpoint import holds_model
from ..errors import MissingPackageError
from ..tokenizers.tokenizer import Tokenizer
from .loaded_model import LoadedModel


def open_model(
    source: str | os.PathLike[str],
    *,
    filename: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
) -> LoadedModel:
    """Opens a deberta-jax folder, or a folder or hub name with PyTorch files.

    Args:
      source: The folder or hub name; NAME@REVISION names a branch, tag or commit.
      filename: Name of the PyTorch weight file, as in `load_pytorch`.
      tokenizer: The tokenizer, or a folder or hub name that has it (default: that of the model).

    Raises:
      MissingFileError: The folder does not exist, or lacks weights, configuration or tokenizer.
      MissingPackageError: PyTorch files are read with packages of the extra "convert".
      ConversionError: The PyTorch weights are damaged or do not match the configuration.
      UserError: The configuration or the tokenizer is invalid, or as `LoadedModel`.
    """
    opened = None if tokenizer is None else _open_tokenizer(tokenizer)
    if filename is None and holds_model(source):
        return LoadedModel.from_folder(source, tokenizer=opened)
    convert = _import_convert(source)
    folder = convert.find_folder(source, filename=filename)
    opened = opened or Tokenizer.from_folder(folder)  # before the weights, which take longer
    config, params = convert.load_pytorch(folder, filename=filename)
    return LoadedModel(str(source), config, params, opened)


def _open_tokenizer(tokenizer: str | os.PathLike[str] | Tokenizer) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if Path(tokenizer).is_dir():
        return Tokenizer.from_folder(tokenizer)
    return Tokenizer.from_folder(_import_convert(tokenizer).find_tokenizer_folder(tokenizer))


def _import_convert(source: object) -> ModuleType:
    """Returns the module that reads PyTorch files, whose packages are optional."""
    try:
        # It stands beside deberta_jax in a checkout and is installed inside it, which pyright cannot know.
        from deberta_jax.convert import from_pytorch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{source} is not a folder of deberta-jax, and reading PyTorch files needs the package {error.name}; "
            "pip install 'deberta-jax[convert]'"
        ) from None
    return from_pytorch
