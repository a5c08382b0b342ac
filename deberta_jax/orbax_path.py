"""Folders whose names have characters that Orbax or TensorStore would interpret."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from .errors import UserError


class _LiteralPath(type(epath.Path())):
    """A path of etils whose own characters are no pattern. Orbax, which uses `glob`, keeps the class of a path."""

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        """Yields the files that match, as `Path.glob` of the standard library does, where only `pattern` is one."""
        return super(_LiteralPath, self._new(glob.escape(str(self)))).glob(pattern)


def orbax_path(folder: str | os.PathLike[str]) -> epath.Path:
    r"""Returns an absolute path to give to Orbax, which would find nothing in a folder such as `exp[1]`.

    Raises:
      UserError: The path has a backslash, which TensorStore reads as a slash (Windows apart), or bytes that are not
        UTF-8, which it cannot read at all.
    """
    path = str(Path(folder).absolute())
    if "\\" in path and os.sep != "\\":
        problem = "a backslash"
    elif path != path.encode(errors="replace").decode():
        problem = "bytes that are not UTF-8"
    else:
        return _LiteralPath(path)
    raise UserError(f"models and checkpoints cannot be stored in {path!r}, whose name has {problem}; choose another")
