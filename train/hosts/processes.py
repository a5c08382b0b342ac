"""The processes of a run: values exchanged between them, and the client of JAX's coordination service."""

import json
import socket
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(value: Any) -> list[Any]:
    """The JSON value of every process, in their order. Collective."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    width = max(64, 1 << int(sizes.max() - 1).bit_length())  # few widths, as each is compiled
    rows = multihost_utils.process_allgather(np.pad(data, (0, width - data.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def host_name() -> str:
    return f"{socket.gethostname()} (process {jax.process_index()})"


class Coordinator(Protocol):
    """What is used of jaxlib's DistributedRuntimeClient."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


def coordinator() -> Coordinator:
    """The client of JAX's coordination service, which has a key-value store and no public name."""
    from jax._src import distributed

    client: Any = distributed.global_state.client
    if client is None:
        raise RuntimeError("several processes without jax.distributed.initialize(); call it first")
    return client
