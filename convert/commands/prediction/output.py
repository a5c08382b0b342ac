"""Where predictions go: a file that a killed run resumes, or standard output.

A file of predictions, `x.jsonl`, is written as `x.jsonl.partial` and gets its name when it is complete. It has one line
per row of the input, so that its lines say how many rows are done. `x.jsonl.partial.json` says what the predictions are
made from: the inputs, the model and the settings.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from deberta_jax.atomic_files import write_file
from deberta_jax.errors import UserError
from deberta_jax.terminal import discard, list_names, say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PIECE = 1 << 20
_FLUSH_SECONDS = 1.0  # a process that is killed loses at most the lines of this time


class Output(Protocol):
    """Takes the predictions, one line per row of the input."""

    done: int  # number of rows of the input that need not be predicted again

    def write(self, line: str) -> None:
        """Writes the line of the next row, which is given without its line end."""
        ...

    def finish(self) -> None:
        """Called after the last row."""
        ...

    def close(self) -> None:
        """Called at the end, also if the run failed."""
        ...


class StandardOutput:
    """Writes the lines to standard output at once."""

    done = 0

    def __init__(self) -> None:
        self._stream = sys.stdout
        self._ascii = self._stream.isatty()

    def write(self, line: str) -> None:
        """Writes a line.

        Raises:
          SystemExit: with 0 if the reader of the pipe has ended, as `head` does.
        """
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except BrokenPipeError:
            discard(self._stream)
            raise SystemExit(0) from None

    def finish(self) -> None: ...

    def close(self) -> None: ...


class OutputFile:
    """A file of predictions. Its lines are those of the rows of the input, in order.

    Attributes:
      done: Number of whole lines that an earlier run left.
    """

    def __init__(self, path: Path, origin: dict[str, Any], *, anew: str | None = None) -> None:
        """Opens the partial file. The last line of a run that was killed is cut if it is not whole.

        Args:
          path: The file.
          origin: What the predictions are made from: JSON values by name, see `_check_origin`.
          anew: Why the lines of an earlier run are dropped, if they are.

        Raises:
          UserError: The file exists; or the partial file is used by another process, damaged, or has another origin.
        """
        self._path, self._partial, self._origin_file = path, *_beside(path)
        begun = self._partial.exists()
        if begun and anew is None:
            _check_origin(self._partial, self._origin_file, origin)
        self._file = _open_locked(self._partial)
        self._flushed = time.monotonic()
        try:
            if begun and anew is not None:
                say(f"{self._partial} is started over: {anew}", error=True)
                self._file.truncate(0)
            self.done = _cut(self._file)
            write_file(self._origin_file, json.dumps(origin, indent=2) + "\n")
        except BaseException:
            self._file.close()
            raise

    def write(self, line: str) -> None:
        """Writes a line; it is in the file a second later.

        Raises:
          UserError: The disk is full.
        """
        with self._writing():
            self._file.write(line.encode() + b"\n")
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def finish(self) -> None:
        """Gives the file its name.

        Raises:
          UserError: The disk is full.
        """
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
        os.replace(self._partial, self._path)
        self._origin_file.unlink(missing_ok=True)

    def close(self) -> None:
        """Writes what is not written yet.

        Raises:
          UserError: The disk is full.
        """
        with self._writing():
            self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._partial}: {error.strerror}; free some space, and run the same command again to continue"
            ) from None


def is_complete(path: Path) -> bool:
    """Returns whether an earlier run wrote all predictions and was killed before it deleted `x.jsonl.partial.json`.

    That file is deleted then.

    Raises:
      UserError: The file exists and no such run is known; or it is a folder, or its folder does not exist.
    """
    partial, origin_file = _beside(path)
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise UserError(f"{path} {reason}; give a file as --output")
    if not path.exists():
        return False
    if origin_file.exists() and not partial.exists():
        origin_file.unlink()
        return True
    raise UserError(f"{path} exists; give another --output, or delete it")


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")


def _open_locked(path: Path) -> BinaryIO:
    """Opens a file to append to, which no other process may do at the same time."""
    file = open(path, "a+b", buffering=_PIECE)  # noqa: SIM115
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is writing {path}; wait for it, or give another --output") from None
    except OSError:  # a file system without locks
        pass
    return file


def _cut(file: BinaryIO) -> int:
    """Cuts a last line that is not whole, and returns the number of lines before it.

    After a power failure, a file may end in NUL bytes in place of what was written last.
    """
    lines = end = position = 0
    file.seek(0)
    while piece := file.read(_PIECE):
        written, *lost = piece.split(b"\0", 1)
        lines += written.count(b"\n")
        end = max(end, position + written.rfind(b"\n") + 1) if b"\n" in written else end
        position += len(piece)
        if lost:
            break
    file.truncate(end)
    return lines


def _check_origin(partial: Path, origin_file: Path, origin: dict[str, Any]) -> None:
    """Raises UserError if the lines of the partial file were not made from the same."""
    advice = f"repeat the first command to continue, give another --output, or delete {partial} to start over"
    try:
        before = json.loads(origin_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{partial} exists, but {origin_file}, which says what it is, cannot be read; {advice}"
        ) from None
    for name in sorted(origin.keys() | before.keys()):
        old, new = before.get(name), origin.get(name)
        if old != new:
            raise UserError(f"{partial} was written {_difference(name, old, new)}; {advice}")


def _difference(name: str, old: Any, new: Any) -> str:
    if name == "model":
        return "with another model"
    if name == "inputs":
        old, new = old or {}, new or {}
        if old.keys() != new.keys():
            return f"from {list_names(old)}, not from {list_names(new)}"
        return f"from other content of {list_names([given for given in old if old[given] != new[given]])}"
    option, unset = f"--{name.replace('_', '-')}", (None, [], False)
    if old in unset:
        return f"without {option}, not with {_words(new)}"
    return f"with {option} {_words(old)}" + ("" if new in unset else f", not {_words(new)}")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
