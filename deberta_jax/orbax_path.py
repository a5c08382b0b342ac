"""Folders whose names have characters that Orbax or TensorStore would interpret."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from .errors import UserError
from .path_names import check_utf8

_LocalPath: Any = type(epath.Path())  # PosixGPath or WindowsGPath


class _LiteralPath(_LocalPath):
    """A path of etils whose own characters are no pattern. Orbax, which uses `glob`, keeps the class of a path."""

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        """Yields the files that match, as `Path.glob` of the standard library does, where only `pattern` is one."""
        return super(_LiteralPath, type(self)(glob.escape(str(self)))).glob(pattern)


def orbax_path(folder: str | os.PathLike[str]) -> epath.Path:
    r"""Returns an absolute path to give to Orbax, which would find nothing in a folder such as `exp[1]`.

    Raises:
      UserError: The path has a backslash, which TensorStore reads as a slash (Windows apart), or is not UTF-8.
    """
    path = str(Path(folder).absolute())
    check_utf8(path)
    if "\\" in path and os.sep != "\\":
        raise UserError(
            f"models and checkpoints cannot be stored in {path!r}, whose name has a backslash; choose another folder"
        )
    return _LiteralPath(path)
