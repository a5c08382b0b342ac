"""The folders of the caches, and where a command may write: not over what it reads."""

import os
from collections.abc import Sequence
from pathlib import Path

from deberta_jax.errors import UserError


def cache_folder() -> Path:
    """Returns the folder of the converted models, which need not exist.

    It is DEBERTA_JAX_CACHE, or deberta-jax/ in the folder of the Hugging Face caches: HF_HOME, by default
    `huggingface` in XDG_CACHE_HOME or ~/.cache.
    """
    given = os.environ.get("DEBERTA_JAX_CACHE")
    return Path(given).expanduser() if given else _hugging_face_folder() / "deberta-jax"


def _hugging_face_folder() -> Path:
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{general}/huggingface").expanduser()


def check_destination(destination: Path, source: Path, *, foreign: Sequence[str]) -> None:
    """Raises if a command would write over what it reads, or what others read.

    Args:
      destination: The folder to write to.
      source: The folder that is read. A hub name is ignored.
      foreign: Entries of a model in another format, which would lose its config.json.

    Raises:
      UserError: `destination` is `source` or inside it, also through links; or in a cache; or holds a model in another
        format.
    """
    resolved = destination.resolve()
    if source.is_dir():
        same = destination.exists() and destination.samefile(source)
        if same or resolved.is_relative_to(source.resolve()):
            relation = "is" if same else "is inside"
            raise UserError(f"the destination {destination} {relation} the source {source}; give another folder")
    hub = os.environ.get("HF_HUB_CACHE") or _hugging_face_folder() / "hub"
    for cache in (cache_folder(), Path(hub).expanduser()):
        if resolved.is_relative_to(cache.resolve()):
            raise UserError(
                f"the destination {destination} is in the cache {cache}, whose entries must not change; give another "
                "folder"
            )
    name = next((name for name in foreign if (destination / name).exists()), None)
    if name is not None:
        raise UserError(
            f"the destination {destination} holds {name}, a model in another format, whose config.json would be "
            "replaced; give another folder"
        )
