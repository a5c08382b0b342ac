"""An adapter in a folder: what LoRA has trained (adapters and head), apart from the model that it belongs to.

adapter.json     the rank, alpha and targets, the name and digest of the base model, and what the task changes in
                 its configuration
params/          the adapters and the head in Orbax's format
model.sha256     digests of both
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from .atomic_folder import current_path
from .checkpoint import ADAPTER_FILE, PARAMETERS_FOLDER, read_parameters, save_folder, verified_shapes
from .checksums import tree_digest
from .config import DebertaConfig
from .errors import MissingFileError, UserError
from .file_digests import DIGESTS_FILE, check_file, read_digests
from .lora import LoraConfig, joined, merged
from .terminal import list_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """What LoRA has trained, and what it was trained on.

    Attributes:
      lora: the rank, scale and targets.
      base: the name of the base model, for messages.
      base_digest: the digest of its encoder's parameters (`base_digest`).
      configuration: the entries of config.json in which the model of the task differs from the base model.
      params: the adapters at the paths of their kernels, and the parameters of the head.
    """

    lora: LoraConfig
    base: str
    base_digest: str
    configuration: Mapping[str, Any]
    params: dict[str, Any]


def base_digest(params: dict[str, Any]) -> str:
    """Returns the digest of the encoder of a model, which an adapter stores.

    With several processes, every process calls it with the same global arrays.
    """
    return tree_digest(params["deberta"])


def configuration_changes(base: DebertaConfig, task: DebertaConfig) -> dict[str, Any]:
    """Returns the entries of config.json in which two models differ, None for one that the second does not have."""
    before, after = base.to_json(), task.to_json()
    return {name: after.get(name) for name in {**before, **after} if before.get(name) != after.get(name)}


def merge_adapter(
    config: DebertaConfig, params: dict[str, Any], adapter: Adapter
) -> tuple[DebertaConfig, dict[str, Any]]:
    """Returns the model of the task: the base model with the adapters added to its kernels, and the adapter's head.

        config, params = merge_adapter(*load_pretrained("base"), load_adapter("runs/sst2/adapter"))

    Args:
      config: the configuration of the base model.
      params: the parameters of the base model, with the encoder under `deberta`. Other heads of it are left out.
      adapter: from `load_adapter`.

    Raises:
      UserError: the adapter was trained on other parameters.
    """
    if "deberta" not in params:
        raise UserError(f"the parameters have {list_names(params)}, but no 'deberta'; give those of the base model")
    if base_digest(params) != adapter.base_digest:
        raise UserError(
            f"the adapter was trained on the model {adapter.base}, whose parameters are others than these; give the "
            "model that it was trained on"
        )
    entries = {**config.to_json(), **adapter.configuration}
    config = DebertaConfig.from_json({name: value for name, value in entries.items() if value is not None})
    return config, merged(joined({"deberta": params["deberta"]}, adapter.params), adapter.lora.scale)


# ------------------------------------------------------------------------------------------------- writing, reading


def save_adapter(folder: str | os.PathLike[str], adapter: Adapter) -> None:
    """Writes an adapter to a folder, atomically; an adapter in it is replaced.

    With several processes, every process calls it with the same global arrays.

    Raises:
      OSError: The folder cannot be written, or what was written cannot be read back. The old adapter stays.
    """
    lora = adapter.lora
    content = {
        "type": "lora",
        "base_model": adapter.base,
        "base_digest": adapter.base_digest,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        "targets": list(lora.targets),
        "configuration": dict(adapter.configuration),
    }
    save_folder(folder, adapter.params, {ADAPTER_FILE: (json.dumps(content, indent=2) + "\n").encode()})


def load_adapter(folder: str | os.PathLike[str], *, mesh: Mesh | None = None) -> Adapter:
    """Reads an adapter that a fine-tuning run with LoRA wrote to adapter/ of its folder.

    Args:
      folder: the folder.
      mesh: places each parameter according to the sharding table (default: all on the first local device).

    Raises:
      MissingFileError: the folder does not exist, or lacks adapter.json or params/.
      UserError: the adapter is damaged, or is not the one that was saved.
    """
    folder = Path(folder).resolve()
    description, path = current_path(folder, ADAPTER_FILE), current_path(folder, PARAMETERS_FOLDER)
    if not description.is_file() or not path.is_dir():
        content = list_names(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise MissingFileError(
            f"{folder} is not an adapter: it needs {ADAPTER_FILE} and {PARAMETERS_FOLDER}/, and holds: {content}; give "
            "the folder adapter/ of a run with --lora.rank"
        )
    digests = read_digests(current_path(folder, DIGESTS_FILE))
    check_file(folder, ADAPTER_FILE, digests, path=description)
    shapes = verified_shapes(path, digests)
    try:
        content = json.loads(description.read_bytes())
        return Adapter(
            lora=LoraConfig(
                rank=content["rank"],
                alpha=content["alpha"],
                dropout=content["dropout"],
                targets=tuple(content["targets"]),
            ),
            base=content["base_model"],
            base_digest=content["base_digest"],
            configuration=content["configuration"],
            params=read_parameters(path, shapes, mesh),
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{description} is damaged: {type(error).__name__} {error}; copy the folder again") from None
