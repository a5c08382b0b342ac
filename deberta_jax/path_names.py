"""Names of folders: short ones that tell them apart, and those that the libraries behind a command cannot open."""

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError


def check_utf8(folder: str | os.PathLike[str]) -> None:
    """Raises UserError if the absolute path of a folder is not UTF-8, which TensorStore and ArrayRecord need."""
    path = str(Path(folder).absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the folder {path!r} has a name that is not UTF-8, or not in this locale; rename it, give another one, or "
            "set PYTHONUTF8=1"
        ) from None


def distinct_endings(paths: Sequence[Sequence[str]], between: str) -> list[str] | None:
    """Returns the last parts of each path, joined, as many as the names need to differ; None if they never do."""
    for length in range(1, max(map(len, paths), default=1) + 1):
        names = [between.join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return None
