"""Checks that all hosts of a run write into the same output folder.

Hosts with separate folders would train until the first checkpoint, where process 0 waits for files that the others
have written elsewhere.
"""

import secrets
import time
from pathlib import Path

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names

from .processes import CoordinationClient

_TOKEN = "deberta_jax/shared_folder/"
_TIMEOUT_MS = 300_000
_SEEN_WITHIN = 60.0  # seconds: a network file system may show a new file late
_PAUSE = 0.5


def check_shared_folder(
    client: CoordinationClient, folder: Path, *, index: int, names: list[str], seen_within: float = _SEEN_WITHIN
) -> None:
    """Checks that every process sees a file which process 0 writes into the folder. Collective.

    Args:
      client: the client of JAX's coordination service.
      folder: the output folder, which is created if necessary.
      index: the index of this process.
      names: the name of every process, for messages.
      seen_within: seconds until the file must be visible.

    Raises:
      UserError: some process does not see it. Every process raises the same error, which names those processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if index == 0:
        path = folder / f".shared-{secrets.token_hex(8)}"
        path.touch()
        client.key_value_set(f"{_TOKEN}name", path.name)
    else:
        path = folder / client.blocking_key_value_get(f"{_TOKEN}name", _TIMEOUT_MS)
    client.key_value_set(f"{_TOKEN}seen/{index}", str(_appears(path, seen_within)))
    answers = [client.blocking_key_value_get(f"{_TOKEN}seen/{process}", _TIMEOUT_MS) for process in range(len(names))]
    if index == 0:
        path.unlink(missing_ok=True)
    blind = [name for name, answer in zip(names, answers, strict=True) if answer != "True"]
    if blind:
        raise UserError(
            f"--output {folder} is not the same folder on all hosts: {list_names(blind)} cannot see what {names[0]} "
            "writes there; give a folder on a shared file system or a mounted bucket"
        )


def _appears(path: Path, seconds: float) -> bool:
    """Returns whether a file exists, or appears within some seconds. Listing its folder refreshes caches of NFS."""
    end = time.monotonic() + seconds
    while path.name not in {entry.name for entry in path.parent.iterdir()}:
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)
    return True
