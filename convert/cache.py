"""A cache of converted models, which lets every command take PyTorch files or a hub name in place of a folder of ours.

    python -m deberta_jax.convert.cache WEIGHTS DESTINATION     # converts one model; `local_model` runs it on pods

Each entry is a folder that `load_pretrained` and `Tokenizer.from_folder` read. Its name ends in a digest of what it was
made from, so an entry never changes and can be deleted at any time. It is written under another name and renamed, so
that processes which convert the same model at the same time do not disturb each other, on one machine or in a folder
that several hosts share.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from deberta_jax.atomic_folder import create_folder
from deberta_jax.cache_folder import cache_folder
from deberta_jax.checkpoint import holds_model, load_pretrained, save_pretrained
from deberta_jax.embedded import embedded_folder
from deberta_jax.errors import UserError, one_line
from deberta_jax.file_digests import DIGESTS_FILE
from deberta_jax.mirrors import local_folder
from deberta_jax.terminal import say

from .errors import ConversionError
from .from_pytorch import find_folder, find_weights, load_pytorch, read_tokenizer

# Part of every digest. Increase it when `load_pytorch` starts to return other parameters or another configuration for
# the same files, or `save_pytorch` to write other files.
CONVERTER = 1

_COPIED = ("*.json", "*.model", "*.txt", "bpe_encoder.bin")  # besides the weights: configuration and tokenizer


def local_model(source: str | os.PathLike[str], *, filename: str | None = None) -> Path:
    """Returns a folder in the format of this library, whatever names the model.

    Args:
      source: A folder that `save_pretrained` wrote, which is returned itself; the name of an embedded model, whose
        folder in the package is returned; a folder with PyTorch files; or, if there is no such folder, the name of a
        hub repository, as NAME or NAME@REVISION. Of the last two a converted copy is returned, which is made once and
        kept in `cache_folder()`.
      filename: Name of the PyTorch weight file, as in `load_pytorch`; a folder of this library has none.

    Raises:
      MissingFileError: There is no such folder or repository, it has no weights, or the hub cannot be reached and the
        repository was not downloaded before.
      ConversionError: The weights are damaged or do not match the configuration.
      UserError: The configuration is invalid, or the cache cannot be written.
    """
    found = local_folder(source)
    if holds_model(found):
        return found
    folder = find_folder(source, filename=filename)
    weights = find_weights(folder, filename)
    entry = cache_folder() / f"{_label(source)}-{_digest(folder, weights)}"
    if not entry.is_dir():
        _add(folder, weights, entry)
        say(f"converted {source}; kept in {entry}", error=True)
    return entry


def pytorch_copy(source: str | os.PathLike[str]) -> Path:
    """Returns a folder with an embedded model as PyTorch files, which is made once and kept in `cache_folder()`.

    Raises:
      UserError: The files of the model are damaged, or the cache cannot be written.
    """
    from .to_pytorch import save_pytorch  # which imports this module

    folder = embedded_folder(source)
    assert folder is not None
    digest = hashlib.sha256(f"{CONVERTER} {(folder / DIGESTS_FILE).read_text(encoding='utf-8')}".encode())
    entry = cache_folder() / f"{_label(source)}-pytorch-{digest.hexdigest()[:20]}"
    if not entry.is_dir():
        config, params = load_pretrained(folder)
        with _new_entry(entry) as partial:
            save_pytorch(partial, config, params, tokenizer=read_tokenizer(folder))
    return entry


def _label(source: str | os.PathLike[str]) -> str:
    """Returns the readable part of an entry's name."""
    text = str(source)
    name = Path(source).resolve().name if Path(source).is_dir() else text.replace("/", "--")
    return re.sub(r"[^\w.@-]+", "-", name)[:80] or "model"


def _digest(folder: Path, weights: Path) -> str:
    """Returns a digest of everything that the conversion of a folder reads."""
    # A snapshot of the hub is named by its commit, which saves reading the weights.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) and folder.parent.name == "snapshots" else None
    digest = hashlib.sha256(f"{CONVERTER} {weights.name} {commit}".encode())
    for path in _files(folder, weights):
        digest.update(f"\0{path.name} {path.stat().st_size}\0".encode())
        if commit is None:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:20]


def _files(folder: Path, weights: Path) -> list[Path]:
    found = {weights, *(path for pattern in _COPIED for path in folder.glob(pattern) if path.is_file())}
    if weights.name.endswith(".index.json"):
        with contextlib.suppress(
            ValueError, KeyError, TypeError, AttributeError, RecursionError
        ):  # reported by the conversion
            shards = json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()
            found |= {folder / name for name in set(shards) if (folder / name).is_file()}
    return sorted(found)


def _add(folder: Path, weights: Path, entry: Path) -> None:
    """Converts a folder into an entry of the cache. Another process may do the same at the same time."""
    with _new_entry(entry) as partial:
        if jax.process_count() == 1:
            convert(weights, partial)
        else:
            _convert_apart(weights, partial)


@contextlib.contextmanager
def _new_entry(entry: Path) -> Iterator[Path]:
    """Yields a folder that becomes an entry of the cache if the block succeeds."""
    with contextlib.ExitStack() as stack:
        try:
            partial = stack.enter_context(create_folder(entry))
        except OSError as error:
            raise UserError(
                f"the cache of converted models {entry.parent} cannot be written: {error.strerror}; set "
                "DEBERTA_JAX_CACHE to another folder, or run `deberta-jax convert` and give its output"
            ) from None
        yield partial


def convert(weights: Path, destination: Path) -> None:
    """Writes the model in a PyTorch file and the tokenizer beside it. It raises as `load_pytorch`."""
    config, params = load_pytorch(weights.parent, filename=weights.name)
    save_pretrained(destination, config, params, tokenizer=read_tokenizer(weights.parent))


def _convert_apart(weights: Path, destination: Path) -> None:
    """Converts in a separate process.

    Inside a run of several processes, `save_pretrained` is collective and writes one model together. Here each process
    needs its own copy, because hosts rarely share the cache.
    """
    command = [sys.executable, "-m", "deberta_jax.convert.cache", str(weights), str(destination)]
    done = subprocess.run(
        command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ConversionError(f"converting {weights} failed: {lines[-1]}")


def main(arguments: list[str]) -> int:
    """Runs `convert` and returns the exit status."""
    try:
        convert(*map(Path, arguments))
    except UserError as error:
        say(one_line(error), error=True)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
