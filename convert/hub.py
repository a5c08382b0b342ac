"""The Hugging Face hub: downloads models and tokenizers, into the cache of `huggingface_hub`, and uploads models."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from deberta_jax.errors import MissingFileError, MissingPackageError, UserError
from deberta_jax.released import RELEASED
from deberta_jax.terminal import list_names

from .errors import first_line

# Folder of the model in the repositories of early versions of sentence-transformers.
TRANSFORMER_FOLDER = "0_Transformer"

NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@(\w[\w./-]*))?")
# In the order of preference. The last resort is a file of any other name.
_WEIGHT_PATTERNS = (("model*.safetensors*",), ("pytorch_model*.bin*",), ("*.safetensors", "*.bin"))
_OTHER_FILES = ("*config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json")
_FOREIGN_WEIGHTS = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax of transformers",
    ".onnx": "ONNX",
    ".gguf": "llama.cpp",
    ".ot": "Rust",
    ".mlmodel": "Core ML",
    ".tflite": "TensorFlow Lite",
}


def download(source: str, *, filename: str | None = None, files: Sequence[str] = ()) -> Path:
    """Downloads a model, and returns its folder in the cache of `huggingface_hub`.

    A copy that was downloaded before is used if the hub cannot be reached.

    Args:
      source: Name of a repository, such as "microsoft/deberta-v3-base", or NAME@REVISION with a branch, tag or commit.
        There is no such folder; the messages say so.
      filename: The only weight file to download (default: safetensors files or, without any, `*.bin`).
      files: Names of further files to download.

    Raises:
      MissingFileError: The name is not one of a repository, the repository cannot be read or has no weights, or the
        hub cannot be reached and there is no copy; or `huggingface_hub` is not installed.
    """
    others = (*_OTHER_FILES, *files)
    folder = None
    for weights in ((filename,),) if filename else _WEIGHT_PATTERNS:
        folder = _snapshot(source, _with_subfolder((*others, *weights)), skip_generator=filename is None)
        if any(any(folder.glob(pattern)) for pattern in _with_subfolder(weights)):
            return folder
    assert folder is not None
    raise MissingFileError(f"no folder {source}, and {_describe_repository(source, folder, filename)}")


def download_tokenizer(source: str, *, files: Sequence[str]) -> Path:
    """Downloads a repository's tokenizer without its weights, and returns the folder. It raises as `download`."""
    return _snapshot(source, _with_subfolder((*_OTHER_FILES, *files)))


def inner_folder(folder: Path) -> Path:
    """Returns the folder of the model: in the layout of early sentence-transformers, a subfolder."""
    inner = folder / TRANSFORMER_FOLDER
    return inner if (inner / "config.json").is_file() and not (folder / "config.json").is_file() else folder


def foreign_weights(names: Collection[str]) -> str:
    """Returns the files that are weights of other libraries, to be printed; "" without any."""
    found = []
    for name in sorted(names):
        suffix = Path(name).suffix
        if suffix in _FOREIGN_WEIGHTS:
            found.append(f"{name} ({_FOREIGN_WEIGHTS[suffix]})")
    return list_names(found) if found else ""


def parse_name(source: str) -> tuple[str, str | None]:
    """Returns the repository and the revision (None: the default branch) that NAME or NAME@REVISION names.

    The name of a released size, such as "deberta-v3-small", names Microsoft's repository.

    Raises:
      MissingFileError: It is neither.
    """
    match = NAME.fullmatch(f"microsoft/{source}" if source.partition("@")[0] in RELEASED else source)
    if match is None:
        raise MissingFileError(
            f"no folder {source}; pass one, or a hub name such as microsoft/deberta-v3-base or OWNER/NAME@REVISION"
        )
    return match[1], match[2]


# -------------------------------------------------------------------------------------------------- repositories


def _with_subfolder(patterns: Sequence[str]) -> list[str]:
    return [*patterns, *(f"{TRANSFORMER_FOLDER}/{pattern}" for pattern in patterns)]


def _snapshot(source: str, patterns: list[str], *, skip_generator: bool = True) -> Path:
    """Returns the folder of a repository with its files of these patterns, downloaded if necessary."""
    name, revision = parse_name(source)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingFileError(
            f"no folder {source}; to download it from the hub, install deberta-jax[convert]"
        ) from None
    pinned: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        return Path(
            snapshot_download(
                name,
                **pinned,
                allow_patterns=patterns,
                ignore_patterns=["*generator*"] if skip_generator else None,
            )
        )
    except Exception as error:  # errors of the hub, of its HTTP client and of its storage have no common class
        # Files that transformers or `hf download` fetched may be fewer than the patterns ask for, and enough.
        copy = _earlier_copy(name, revision) if _is_unreachable(error) else None
        if copy is not None:
            return copy
        raise MissingFileError(f"no folder {source}, and {_describe_failure(name, revision, error)}") from None


def _earlier_copy(name: str, revision: str | None) -> Path | None:
    """Returns the folder of what was downloaded before, or None."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "model_config.json", f"{TRANSFORMER_FOLDER}/config.json"):
        path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str):  # neither unknown nor known to be absent
            return Path(path.removesuffix(file))
    return None


def _is_unreachable(error: Exception) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, LocalEntryNotFoundError)


def _describe_failure(name: str, revision: str | None, error: Exception) -> str:
    """Returns why a repository cannot be read and what to do, on one line."""
    from huggingface_hub import constants, errors

    # The order matters: a gated repository is, to the hub, one that is not found.
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} on the hub is gated: accept its terms at {constants.ENDPOINT}/{name}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} on the hub has no revision {revision}; give a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no repository {name} that you may read: check the spelling; if it is private, log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if _is_unreachable(error):
        cause = error.__cause__ or error
        reason = (
            "HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} cannot be reached: {type(cause).__name__}: {first_line(cause)}"
        )
        pinned = f" --revision {revision}" if revision else ""
        return (
            f"{name} has not been downloaded to {constants.HF_HUB_CACHE} before and cannot be now ({reason}); go "
            f"online, or run `hf download {name}{pinned} --local-dir FOLDER` on another machine and give FOLDER"
        )
    return f"downloading it from the hub failed: {first_line(error)}"


def _describe_repository(source: str, folder: Path, filename: str | None) -> str:
    """Returns what a repository without the wanted weights has instead, on one line."""
    from huggingface_hub import HfApi

    name, revision = parse_name(source)
    wanted = filename or "PyTorch weights (*.safetensors or *.bin)"
    try:
        names = HfApi().list_repo_files(name, revision=revision)
    except Exception:  # unreachable: what was downloaded before is all that is known
        return (
            f"the copy of {name} in {folder} has no {wanted}, and the hub cannot be reached for the rest; go online "
            "and run the same command again"
        )
    foreign = foreign_weights(names)
    nested = sorted({os.path.dirname(path) for path in names if re.search(r"/.+\.(safetensors|bin)$", path)})
    if foreign:
        has = f"but {foreign}"
    elif nested:
        has = f"but some in {list_names(nested)}; run `hf download {name} --local-dir FOLDER` and give that subfolder"
    else:
        has = f"but {list_names(names)}" if names else "and is empty"
    return f"the repository {name} on the hub has no {wanted}, {has}"


# -------------------------------------------------------------------------------------------------------- uploads


def upload(name: str, files: Mapping[str, Path], *, private: bool, update: bool) -> str:
    """Writes files to a repository in one commit, so that it has all of them or none. Returns its address.

    Args:
      name: The repository, OWNER/NAME. It is created if necessary.
      files: Local paths by their names in the repository.
      private: Create a private repository.
      update: Commit to a repository that exists.

    Raises:
      UserError: The hub cannot be reached, the user is not logged in or may not write there, or the repository exists
        and `update` is not set. No file was written.
      MissingPackageError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, constants
    except ImportError:
        raise MissingPackageError("uploading needs the package huggingface_hub; install deberta-jax[convert]") from None
    api, created = HfApi(endpoint=constants.ENDPOINT), False
    try:
        api.whoami()
        if not api.repo_exists(name):
            api.create_repo(name, private=private)
            created = True
        elif not update:
            raise UserError(f"{constants.ENDPOINT}/{name} exists; add --update to commit to it, or give another name")
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
        api.create_commit(name, operations, commit_message="Upload a model with deberta-jax")
    except UserError:
        raise
    except Exception as error:  # errors of the hub, of its HTTP client and of its storage have no common class
        rest = ". The new repository is there, and empty: repeat the command with --update" if created else ""
        raise UserError(f"{name} was not uploaded: {_describe_refusal(name, error)}{rest}") from None
    return f"{constants.ENDPOINT}/{name}"


def _describe_refusal(name: str, error: Exception) -> str:
    """Returns why an upload failed and what to do, on one line."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return "you are not logged in, or the token is not valid; run `hf auth login`, or set HF_TOKEN"
    if status in (403, 404):
        return f"your token may not write to {name}; use one with write access, or another owner"
    if isinstance(error, errors.HFValidationError):
        return first_line(error)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it"
    if status is None:
        return f"{constants.ENDPOINT} cannot be reached: {type(error).__name__}: {first_line(error)}"
    return f"the hub answered {status}: {first_line(error)}"
