"""Where a command may write: not over what it reads, nor into a cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from deberta_jax.cache_folder import cache_folder, hugging_face_folder
from deberta_jax.errors import UserError
from deberta_jax.mirrors import is_local_copy


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
    hub = os.environ.get("HF_HUB_CACHE") or hugging_face_folder() / "hub"
    for cache in (cache_folder(), Path(hub).expanduser()):
        if resolved.is_relative_to(cache.resolve()) and not is_local_copy(resolved):
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
