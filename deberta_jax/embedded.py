"""Models that are part of the package. They are opened by name, without a network, a download or a cache.

Each is a pair for replaced token detection. Its two folders, `discriminator/` and `generator/`, hold what
`save_pretrained` writes, except that the parameters are in one file: PACKED_FILE, bfloat16. `load_pretrained` returns
them as float32. `python -m tests.support.embed_tiny` writes the folders from the folder of a run.
"""

import os
from pathlib import Path

from .errors import MissingFileError

EMBEDDED = ("deberta-v3-tiny",)
PACKED_FILE = "params.npz"  # arrays by their paths, such as "deberta/encoder/layer_0/...", bfloat16 stored as uint16
_MODELS = ("discriminator", "generator")


def embedded_folder(source: str | os.PathLike[str]) -> Path | None:
    """Returns the folder of a model of the package, or None if `source` does not name one.

    "deberta-v3-tiny" and "deberta-v3-tiny/discriminator" name the discriminator, which is the model to fine-tune, and
    "deberta-v3-tiny/generator" names the generator, which predicts masked tokens. A file or folder called
    deberta-v3-tiny in the current folder is used instead.

    Raises:
      MissingFileError: The pair has no such model, or this installation lacks its files.
    """
    name, *rest = Path(source).parts or ("",)
    if name not in EMBEDDED or os.path.lexists(name):
        return None
    model = "/".join(rest) or _MODELS[0]
    if model not in _MODELS:
        raise MissingFileError(f"no folder {source}, and {name} has no model {model!r}; it has {' and '.join(_MODELS)}")
    folder = package_folder(name) / model
    if not (folder / PACKED_FILE).is_file():
        raise MissingFileError(
            f"{source} is not complete here: {folder / PACKED_FILE} is missing; install deberta-jax again"
        )
    return folder


def package_folder(name: str) -> Path:
    """Returns the folder of a pair of the package, which has a subfolder for each of its two models."""
    return Path(__file__).parent / name.replace("-", "_")


def masked_lm_of(source: str) -> str:
    """Returns the name of the model that predicts masked tokens: of a pair of the package its generator."""
    return f"{source}/generator" if source in EMBEDDED and not os.path.lexists(source) else source
