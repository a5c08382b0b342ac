"""`model.sha256`: the digests of a model's files, which `sha256sum -c` reads as well.

The files themselves are verified, not the arrays in them, because one mechanism then covers configuration, tokenizer
and parameters, and TensorStore, which is written in C++, never reads a damaged file. Folders of earlier versions have
no such file and are not verified; a file that is not listed is not verified either.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import UserError

DIGESTS_FILE = "model.sha256"
TOKENIZER_FILES = (
    *("spm.model", "spiece.model", "vocab.json", "merges.txt", "bpe_encoder.bin", "vocab.txt", "tokenizer.json"),
    *("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
)
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of files of a folder, in hexadecimal.

    Raises:
      OSError: A file cannot be read.
    """
    names = sorted(names)

    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the lock of the interpreter
        return dict(zip(names, pool.map(digest, names), strict=True))


def files_below(folder: Path, name: str) -> list[str]:
    """Returns the paths of all files in a subfolder of `folder`, relative to `folder`."""
    return sorted(path.relative_to(folder).as_posix() for path in (folder / name).rglob("*") if not path.is_dir())


def format_digests(digests: Mapping[str, str]) -> str:
    """Returns the content of DIGESTS_FILE."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def read_digests(path: Path) -> dict[str, str]:
    """Returns the digests by file, or nothing if there is no such file.

    Raises:
      UserError: It is damaged.
    """
    try:
        lines = path.read_bytes().decode().split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnicodeDecodeError:
        raise _broken(path) from None
    matches = [_LINE.fullmatch(line) for line in lines if line]
    digests = {match[2]: match[1] for match in matches if match}
    if len(digests) < len(matches):
        raise _broken(path)
    return digests


def _broken(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged: each line must be a SHA-256, two spaces and a file; copy the folder again, or delete "
        f"{path.name} to read the files unverified"
    )


def check_file(folder: Path, name: str, digests: Mapping[str, str], *, path: Path | None = None) -> None:
    """Raises if a file is not as it was saved. A file that is not listed is taken as it is.

    Args:
      folder: The folder, for the message.
      name: The file.
      digests: What `read_digests` returned.
      path: Where the file is (default: in the folder).

    Raises:
      UserError: It has changed.
    """
    if name not in digests:
        return
    path = path or folder / name
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == digests[name]:
                return
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing, but {DIGESTS_FILE} lists it; copy the folder again") from None
    raise UserError(
        f"{path} is not as it was saved: it is damaged, or was edited; copy it again or, to accept an edit, delete its "
        f"line in {folder / DIGESTS_FILE}"
    )


def changed_file(folder: Path, digests: Mapping[str, str]) -> str | None:
    """Returns which of the listed files is missing or has other content, as the reason of a message.

    Raises:
      OSError: A file cannot be read.
    """
    missing = next((name for name in sorted(digests) if not (folder / name).is_file()), None)
    if missing is not None:
        return f"{missing} is missing"
    actual = file_digests(folder, digests)
    return next((f"{name} is not as it was saved" for name in sorted(digests) if actual[name] != digests[name]), None)
