"""Opens any model that can be named: a folder of a run or a model, a folder of PyTorch files, or a hub name."""

import importlib
import os
from pathlib import Path
from types import ModuleType

from ..checkpoint import holds_model
from ..embedded import embedded_folder
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
      source: The folder or hub name, or the name of an embedded model, such as "deberta-v3-tiny". For a run, the
        finished model is opened; for several seeds, the best one. NAME@REVISION names a branch, tag or commit.
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
    convert = _import_convert("from_pytorch", source)
    if filename is None and Path(source).is_dir():
        model, _ = _import_convert("run_record", source).model_of_run(Path(source))
        if holds_model(model):
            return LoadedModel.from_folder(model, tokenizer=opened)
    folder = convert.find_folder(source, filename=filename)
    opened = opened or Tokenizer.from_folder(folder)  # before the weights, which take longer
    config, params = convert.load_pytorch(folder, filename=filename)
    return LoadedModel(str(source), config, params, opened)


def _open_tokenizer(tokenizer: str | os.PathLike[str] | Tokenizer) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if Path(tokenizer).is_dir() or embedded_folder(tokenizer) is not None:
        return Tokenizer.from_folder(tokenizer)
    return Tokenizer.from_folder(_import_convert("from_pytorch", tokenizer).find_tokenizer_folder(tokenizer))


def _import_convert(name: str, source: object) -> ModuleType:
    """Returns a module of `deberta_jax.convert`, whose packages are optional."""
    try:
        return importlib.import_module(f"deberta_jax.convert.{name}")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{source} is not a folder of deberta-jax, and reading PyTorch files needs the package {error.name}; "
            "pip install 'deberta-jax[convert]'"
        ) from None
