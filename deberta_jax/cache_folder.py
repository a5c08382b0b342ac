"""The folder of what can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder of converted models and of copies of stores, which need not exist.

    It is DEBERTA_JAX_CACHE, or deberta-jax/ in the folder of the Hugging Face caches: HF_HOME, by default
    `huggingface` in XDG_CACHE_HOME or ~/.cache.
    """
    given = os.environ.get("DEBERTA_JAX_CACHE")
    return Path(given).expanduser() if given else hugging_face_folder() / "deberta-jax"


def hugging_face_folder() -> Path:
    """Returns the folder of the Hugging Face caches."""
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{general}/huggingface").expanduser()
