"""A model in a folder: `config.json`, and the parameters in Orbax's format under `params/`."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from .atomic_files import write_file
from .config import DebertaConfig
from .errors import MissingFileError, UserError
from .parameter_check import adapt_to_parameters, check_readable
from .path_names import check_utf8
from .sharding import named_shardings
from .terminal import list_names

CONFIG_FILE = "config.json"
PARAMETERS_FOLDER = "params"


def save_pretrained(folder: str | os.PathLike[str], config: DebertaConfig, params: dict[str, Any]) -> None:
    """Writes a model to a folder, which is created if necessary; a model in it is replaced.

    With several processes, every process calls it with the same global arrays.

    Args:
      params: {"deberta": ..., and the heads}, as from `model.init(...)["params"]` or `load_pytorch`.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    check_utf8(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Without compression, and without Orbax's own copy of NumPy arrays, writing needs almost no memory.
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    # Writes to a temporary folder and renames it, on a mounted bucket as well, whatever the default of Orbax becomes.
    rename = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.ATOMIC_RENAME)
    with ocp.Checkpointer(handler, atomicity_options=rename) as checkpointer:
        checkpointer.save(folder / PARAMETERS_FOLDER, args=ocp.args.PyTreeSave(params), force=True)
    if jax.process_index() == 0:
        write_file(folder / CONFIG_FILE, json.dumps(config.to_json(), indent=2) + "\n")


def load_pretrained(
    folder: str | os.PathLike[str], *, mesh: Mesh | None = None
) -> tuple[DebertaConfig, dict[str, Any]]:
    """Reads a model that `save_pretrained` wrote.

    Args:
      mesh: places each parameter according to the sharding table (default: all on the first local device).

    Returns:
      The configuration and the parameters, a nested dict with the encoder under `deberta`.

    Raises:
      MissingFileError: the folder does not exist, or lacks config.json or params/.
      UserError: the configuration is invalid, does not belong to the parameters (layers beyond its number, for
        example), or the parameters are damaged.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    check_utf8(folder)
    if not (folder / CONFIG_FILE).is_file() or not (folder / PARAMETERS_FOLDER).is_dir():
        content = list_names(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise MissingFileError(
            f"{folder} is not a model saved by save_pretrained: it needs {CONFIG_FILE} and {PARAMETERS_FOLDER}/, "
            f"and holds: {content}. For PyTorch files use `deberta-jax convert` or load_pytorch"
        )
    config = DebertaConfig.from_json(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder / PARAMETERS_FOLDER).item_metadata
        if saved is None:  # Orbax logs the reason
            raise UserError(_damaged(folder, "its metadata cannot be read"))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved.tree)
        config = adapt_to_parameters(config, shapes)
        check_readable(config, shapes, where=str(folder))
        if mesh is None:
            first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            placement = jax.tree.map(lambda _: first, shapes)
        else:
            placement = named_shardings(shapes, mesh)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placement
        )
        try:
            return config, checkpointer.restore(folder / PARAMETERS_FOLDER, target)
        except (OSError, MemoryError, jax.errors.JaxRuntimeError):  # the machine's fault, such as memory
            raise
        except Exception as error:  # a plain Exception is what Orbax raises where TensorStore cannot read an array
            raise UserError(_damaged(folder, str(error).partition("See full TensorStore details")[0])) from error


def _damaged(folder: Path, reason: str) -> str:
    return (
        f"the parameters in {folder / PARAMETERS_FOLDER} are damaged or incomplete: {reason.strip().rstrip('.')}; "
        "copy the folder or save the model again"
    )
