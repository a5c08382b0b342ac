"""Models and tokenizers that a user names by PyTorch files or on the Hugging Face hub, as folders.

The only module of train/ that calls convert/, for the commands, which may use both. A folder in the format of this
library needs nothing of convert/.
"""

import contextlib
from pathlib import Path

from deberta_jax.errors import MissingFileError

# Beside the weights of a released discriminator, with a generator_config.json.
_GENERATOR_FILE = "pytorch_model.generator.bin"


def model_folder(source: Path, *, generator: bool = False) -> Path:
    """Returns a folder that `load_pretrained` reads: `source` itself, or its conversion (see `convert.cache`).

    Args:
      source: a folder of ours or of PyTorch files, or a hub name.
      generator: of PyTorch files that are a pair for replaced token detection, take the generator.

    Raises:
      UserError: as `convert.cache.local_model`.
    """
    from deberta_jax.checkpoint import PARAMETERS_FOLDER  # here, because `prepare` does not need JAX

    if (source / PARAMETERS_FOLDER).is_dir():
        return source
    from ..convert.cache import local_model

    if generator:
        with contextlib.suppress(MissingFileError):  # no pair; or no such model at all, which is raised below
            return local_model(source, filename=_GENERATOR_FILE)
    return local_model(source)


def tokenizer_folder(source: Path) -> Path:
    """Returns a folder that `Tokenizer.from_folder` reads: `source` itself, or the download of a hub name.

    Raises:
      UserError: as `convert.from_pytorch.find_tokenizer_folder`.
    """
    if source.is_dir():
        return source
    from ..convert.from_pytorch import find_tokenizer_folder

    return find_tokenizer_folder(source)
