"""A model in a folder: `config.json`, the parameters in Orbax's format under `params/`, and their digests."""

import contextlib
import errno
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from .atomic_folder import Staging, current_path, leftovers, new_name
from .config import DebertaConfig
from .embedded import PACKED_FILE
from .errors import MissingFileError, UserError, as_expected, write_errno
from .file_digests import (
    DIGESTS_FILE,
    TOKENIZER_FILES,
    changed_file,
    check_file,
    file_digests,
    files_below,
    format_digests,
    read_digests,
)
from .mirrors import local_folder, written_to
from .orbax_path import orbax_path
from .parameter_check import adapt_to_parameters, check_readable
from .sharding import named_shardings
from .stores import is_address
from .terminal import list_names

CONFIG_FILE = "config.json"
PARAMETERS_FOLDER = "params"
ADAPTER_FILE = "adapter.json"  # in place of CONFIG_FILE in a folder of `adapter.save_adapter`
_LOG = logging.getLogger("deberta_jax")
_ATTEMPTS = 5  # to read a folder while other processes replace the model in it


def holds_model(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a folder has parameters that `save_pretrained` wrote, or is the name of an embedded model.

    Raises:
      UserError: it has an adapter, which is not a model.
    """
    folder = local_folder(folder)
    if current_path(folder, ADAPTER_FILE).is_file():
        raise UserError(
            f"{folder} is an adapter of LoRA, not a model; give the folder model/ beside it, in which the adapter is "
            "merged, or use deberta_jax.merge_adapter"
        )
    return current_path(folder, PARAMETERS_FOLDER).is_dir() or (folder / PACKED_FILE).is_file()


# ------------------------------------------------------------------------------------------------------- writing


def save_pretrained(
    folder: str | os.PathLike[str],
    config: DebertaConfig,
    params: dict[str, Any],
    *,
    tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes a model to a folder, which is created if necessary; a model in it is replaced, other files stay.

    The new model is written beside the old one, read back, and moved to its place. A process that is killed leaves the
    old model or the new one. What it has written besides is not read, and removed by the next save. Both models need
    space for a moment.

    In a store, such as at gs://bucket/model, the model is complete when model.sha256 is written, at the end. A process
    that is killed while it replaces a model there leaves one that `load_pretrained` calls damaged.

    With several processes, every process calls it with the same global arrays.

    Args:
      params: {"deberta": ..., and the heads}, as from `model.init(...)["params"]` or `load_pytorch`.
      tokenizer: Files of the tokenizer by name, as from `Tokenizer.files`. They replace the tokenizer in the folder in
        the same step (default: it stays).

    Raises:
      UserError: The parameters have no "deberta", or nothing can be stored in a folder of this name (see `orbax_path`).
      OSError: The folder cannot be written, or what was written cannot be read back. The old model stays.
    """
    if "deberta" not in params:
        raise UserError(
            f"the parameters have {list_names(params)}, but no 'deberta'; an encoder alone is saved as "
            "{'deberta': parameters}"
        )
    content = (json.dumps(config.to_json(), indent=2) + "\n").encode()
    save_folder(folder, params, {CONFIG_FILE: content, **tokenizer}, new_tokenizer=bool(tokenizer))


def save_folder(
    folder: str | os.PathLike[str], params: Any, files: Mapping[str, bytes], *, new_tokenizer: bool = False
) -> None:
    """Writes parameters and files to a folder in one step, as `save_pretrained` documents.

    Args:
      params: The parameters, a nested dict of arrays.
      files: Content of the other files by name.
      new_tokenizer: Whether the files of a tokenizer that are in the folder are removed.
    """
    if is_address(folder):
        if jax.process_count() > 1:
            raise UserError(f"{folder}: {jax.process_count()} processes save a model together in a folder that all see")
        with written_to(folder) as local:
            save_folder(local, params, files, new_tokenizer=new_tokenizer)
        return
    from .orbax_folder import write_folder

    orbax_path(folder)  # raises
    staging = Staging(Path(folder).resolve(), _agreed_name())
    try:
        _on_first_process(staging.create, folder)
        try:
            write_folder(staging.path / PARAMETERS_FOLDER, params)
        except ValueError as error:
            if not re.match(r"[A-Z_]+: ", str(error)):  # the code of an error of TensorStore
                raise
            raise _write_error(folder, error) from error
        _on_first_process(lambda: _finish(staging, params, files, new_tokenizer=new_tokenizer), folder)
    finally:
        if jax.process_index() == 0:
            staging.discard()


def _finish(staging: Staging, params: Any, files: Mapping[str, bytes], *, new_tokenizer: bool) -> None:
    """Adds everything but the parameters to a new model, reads it back and moves it to its place."""
    from .orbax_folder import read_back

    folder, new = staging.folder, staging.path
    for name, content in files.items():
        (new / name).write_bytes(content)
    read_back(new / PARAMETERS_FOLDER, params)
    digests = file_digests(new, [*files, *files_below(new, PARAMETERS_FOLDER)])
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file() and name not in files]
    if not new_tokenizer:
        digests |= file_digests(folder, present)
    (new / DIGESTS_FILE).write_text(format_digests(digests), encoding="utf-8")
    staging.commit(last=DIGESTS_FILE, remove=present if new_tokenizer else ())


def _agreed_name() -> str:
    """Returns a name for a `Staging`, the same in all processes."""
    name = new_name()
    if jax.process_count() == 1:
        return name
    letters = np.frombuffer(name.encode().ljust(128), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(letters)).astype(np.uint8)).decode().strip()


def _on_first_process(action: Callable[[], None], folder: str | os.PathLike[str]) -> None:
    """Runs an action on the first process, while the others wait. If it fails, all raise OSError."""
    failure = None
    if jax.process_index() == 0:
        try:
            action()
        except (OSError, ValueError, RuntimeError) as error:  # the last two: what was written cannot be read
            failure = error if isinstance(error, OSError) and error.errno else _write_error(folder, error)
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(failure is not None))
        if failed and failure is None:
            raise OSError(errno.EIO, f"the model {folder} was not saved; the first process reports why")
    if failure is not None:
        raise failure


def _write_error(folder: str | os.PathLike[str], error: Exception) -> OSError:
    code = write_errno(error)
    reason = os.strerror(code) if code == errno.ENOSPC else " ".join(str(error).split())[:300]
    return OSError(code, f"the model {folder} was not saved: {reason}; an earlier model in it is unchanged")


# ------------------------------------------------------------------------------------------------------- reading


def load_pretrained(
    folder: str | os.PathLike[str], *, mesh: Mesh | None = None
) -> tuple[DebertaConfig, dict[str, Any]]:
    """Reads a model that `save_pretrained` wrote, or one that is part of the package.

    Its files are first compared with the digests in model.sha256, if the folder has them.

    Args:
      folder: the folder, its address in a store such as gs://bucket/model, or "deberta-v3-tiny" or
        "deberta-v3-tiny/generator" (see `embedded.embedded_folder`).
      mesh: places each parameter according to the sharding table (default: all on the first local device).

    Returns:
      The configuration and the parameters, a nested dict with the encoder under `deberta`.

    Example:
      config, params = load_pretrained("deberta-v3-tiny")

    Raises:
      MissingFileError: the folder does not exist, or lacks config.json or params/.
      UserError: the configuration is invalid, does not belong to the parameters (layers beyond its number, for
        example), or is not the one that was saved; or the parameters are damaged.
    """
    folder = local_folder(folder).resolve()
    for attempt in range(_ATTEMPTS):
        version = _version(folder)
        try:
            result = _load(folder, mesh)
        except (UserError, OSError):
            if attempt == _ATTEMPTS - 1 or _version(folder) == version:
                raise
        else:
            if _version(folder) == version:
                return result
    raise UserError(f"the model in {folder} is being replaced again and again; stop the other process first")


def _version(folder: Path) -> tuple[Any, ...]:
    """Returns what changes when another process replaces the model in a folder."""
    paths = [current_path(folder, name) for name in (DIGESTS_FILE, CONFIG_FILE, PARAMETERS_FOLDER)]
    return tuple((path, path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else path for path in paths)


def _load(folder: Path, mesh: Mesh | None) -> tuple[DebertaConfig, dict[str, Any]]:
    config_path, path = current_path(folder, CONFIG_FILE), current_path(folder, PARAMETERS_FOLDER)
    packed = not path.is_dir() and (folder / PACKED_FILE).is_file()
    if not config_path.is_file() or not (packed or path.is_dir()):
        raise _missing(folder)
    if not packed and path.parent != folder:
        _LOG.warning("%s: a save was interrupted; this is the previous model, in %s", folder, path.parent)
    config = DebertaConfig.from_json(config_path)
    digests = read_digests(current_path(folder, DIGESTS_FILE))
    check_file(folder, CONFIG_FILE, digests, path=config_path)
    if packed:
        check_file(folder, PACKED_FILE, digests)
        params = _read_packed(folder / PACKED_FILE)
        check_readable(config, params, where=str(folder))
        return config, jax.tree.map(_put, params, _placement(params, mesh))
    shapes = verified_shapes(path, digests)
    config = adapt_to_parameters(config, shapes)
    check_readable(config, shapes, where=str(folder))
    return config, read_parameters(path, shapes, mesh)


def verified_shapes(path: Path, digests: Mapping[str, str]) -> Any:
    """Returns the shapes of the parameters in a folder, after a comparison of its files with their digests.

    Raises:
      UserError: They are damaged.
    """
    from .orbax_folder import read_shapes

    listed = {name: digest for name, digest in digests.items() if name.startswith(f"{PARAMETERS_FOLDER}/")}
    if changed := changed_file(path.parent, listed):
        raise UserError(_damaged(path, changed))
    with _reading(path):
        return read_shapes(path)


def read_parameters(path: Path, shapes: Any, mesh: Mesh | None) -> Any:
    """Reads parameters to the first local device or, with a mesh, to where the sharding table places them.

    Raises:
      UserError: They are damaged.
    """
    from .orbax_folder import read_folder

    placement = _placement(shapes, mesh)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placement
    )
    with _reading(path):
        return read_folder(path, target)


def _placement(shapes: Any, mesh: Mesh | None) -> Any:
    """Returns the sharding of each parameter: the first local device or, with a mesh, what the table says."""
    if mesh is not None:
        return named_shardings(shapes, mesh)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: first, shapes)


def _put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array onto devices; of a mesh over several processes, each puts its own part."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _read_packed(path: Path) -> dict[str, Any]:
    """Returns the parameters in a PACKED_FILE, float32.

    Raises:
      UserError: It is damaged.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name].view(ml_dtypes.bfloat16).astype(np.float32) for name in file.files}
    except (ValueError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(_damaged(path, str(error))) from None
    return traverse_util.unflatten_dict(arrays, sep="/")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Reports damaged parameters in one line, of folders that have no digests."""
    try:
        yield
    except (UserError, OSError, MemoryError, jax.errors.JaxRuntimeError):  # the last three: the machine's fault
        raise
    except Exception as error:  # a plain Exception is what Orbax raises where TensorStore cannot read an array
        if as_expected(error) is not error:  # such as a variable that JAX refuses when it starts
            raise
        raise UserError(_damaged(path, str(error).partition("See full TensorStore details")[0])) from error


def _missing(folder: Path) -> MissingFileError:
    content = list_names(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
    left = ", ".join(path.name for path in leftovers(folder))
    hint = f" ({left}: what an interrupted save has left; it cannot be read)" if left else ""
    return MissingFileError(
        f"{folder} is not a model saved by save_pretrained: it needs {CONFIG_FILE} and {PARAMETERS_FOLDER}/, "
        f"and holds: {content}{hint}. For PyTorch files use `deberta-jax convert` or load_pytorch"
    )


def _damaged(path: Path, reason: str) -> str:
    return (
        f"the parameters in {path} are damaged or incomplete: {reason.strip().rstrip('.')}; "
        "copy the folder or save the model again"
    )
