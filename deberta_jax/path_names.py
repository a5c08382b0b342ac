"""Names of folders that the libraries behind a command cannot open."""

import os
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
