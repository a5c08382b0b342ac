"""A model in a folder: config.json and parameters in Orbax's format."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .config import DebertaConfig
from .errors import MissingFileError, UserError
from .sharding import named_shardings, parameter_path

CONFIG_FILE = "config.json"
PARAMETERS_FOLDER = "params"


def save_pretrained(folder: str | os.PathLike[str], config: DebertaConfig, params: dict[str, Any]) -> None:
    """Writes config.json and params/ into a folder, which is made if need be; a model that is there is replaced.

    With several processes, all of them call it with the same global arrays.

    Args:
      params: {"deberta": ..., heads ...}, as `model.init(...)["params"]` or `load_pytorch` give.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Uncompressed and without Orbax's own copy of NumPy arrays, writing takes next to no memory.
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=handlers)
    with ocp.Checkpointer(handler) as checkpointer:  # writes to a temporary folder and renames
        checkpointer.save(folder / PARAMETERS_FOLDER, args=ocp.args.PyTreeSave(params), force=True)
    if jax.process_index() == 0:
        part = folder / f"{CONFIG_FILE}.part"
        part.write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")
        part.replace(folder / CONFIG_FILE)


def load_pretrained(
    folder: str | os.PathLike[str], *, mesh: Mesh | None = None
) -> tuple[DebertaConfig, dict[str, Any]]:
    """Reads what `save_pretrained` wrote.

    Args:
      mesh: put each parameter where the sharding table says; None: all on the first device.

    Raises:
      FileNotFoundError: the folder holds no such model.
      ValueError: its configuration is not valid.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).resolve()
    if not (folder / CONFIG_FILE).is_file() or not (folder / PARAMETERS_FOLDER).is_dir():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise MissingFileError(
            f"{folder} is not a model saved by save_pretrained: it needs {CONFIG_FILE} and {PARAMETERS_FOLDER}/, "
            f"and holds: {held}. For PyTorch files use `deberta-jax convert` or load_pytorch"
        )
    config = DebertaConfig.from_json(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder / PARAMETERS_FOLDER).item_metadata.tree
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
        if mesh is None:
            places = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), shapes)
        else:
            places = named_shardings(shapes, mesh)
        target = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)
        return config, checkpointer.restore(folder / PARAMETERS_FOLDER, target)


def start_from(weights: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """Fresh parameters with the encoder of `weights`, and with each of its heads that fits: what training goes on from.

    What the fresh model does not have, such as the position table of a model that does not read one, is left out.

    Raises:
      ValueError: the encoder lacks a parameter or has one of another shape.
    """
    given = dict(jax.tree.leaves_with_path(weights["deberta"]))
    for path, leaf in jax.tree.leaves_with_path(fresh["deberta"]):
        if path not in given or given[path].shape != leaf.shape:
            found = given[path].shape if path in given else "nothing"
            raise UserError(
                f"the model's weights have {found} at deberta/{parameter_path(path)}, which needs {leaf.shape}"
            )
    encoder = jax.tree.map_with_path(lambda path, _: given[path], fresh["deberta"])
    heads = {name: weights[name] for name in fresh if name != "deberta" and _fits(weights.get(name), fresh[name])}
    return {**fresh, "deberta": encoder, **heads}


def _fits(one: Any, other: Any) -> bool:
    return one is not None and jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, other)
