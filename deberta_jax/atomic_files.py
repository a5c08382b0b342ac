"""Files that are replaced atomically: a reader sees the old file or the whole new one, never a part of it."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new path next to `path` to write to, and renames it to `path` if the block succeeds.

    If the block raises, `path` stays as it was and the partial file is removed. Nothing is flushed to disk: after a
    power failure, the file may be incomplete.

    Raises:
      OSError: The file cannot be renamed, or the block did not write it.

    Example:
      with replace_file("runs/demo/config.json") as partial:
          partial.write_text("{}")
    """
    path = Path(path)
    # Hidden and unique, so that several processes, even on several hosts, can write the same file in a shared folder.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a text file (UTF-8) or a binary file atomically. Its folder must exist.

    Raises:
      OSError: The file cannot be written; an old file at `path` stays as it was.
    """
    with replace_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
