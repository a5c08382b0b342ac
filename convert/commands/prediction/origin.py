"""What predictions are made from, as JSON values: a resumed run must have the same."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.terminal import with_addresses

from .rows import is_file
from .streams import STANDARD_INPUT


def input_digests(arguments: Sequence[str]) -> dict[str, str] | None:
    """Returns the SHA-256 of the content of each input by its name, or None if one cannot be read again.

    Raises:
      OSError: A file cannot be read.
    """
    digests = {}
    for argument in arguments:
        if not is_file(argument):
            digests[argument] = "text"
            continue
        path = Path(argument).expanduser()
        if argument == STANDARD_INPUT or not path.is_file():  # a pipe
            return None
        with path.open("rb") as file:
            digests[with_addresses(argument)] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def model_digest(model: LoadedModel) -> str:
    """Returns the SHA-256 of the parameters, the configuration, the tokenizer and the thresholds.

    It does not depend on the folder of the model.
    """
    thresholds = sorted(model.thresholds.items())
    digest = hashlib.sha256(f"{model.tokenizer.fingerprint} {dataclasses.astuple(model.config)} {thresholds}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"\0{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def settings_values(settings: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass of options as JSON values."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(settings).items()
    }
