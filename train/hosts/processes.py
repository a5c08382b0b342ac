"""The processes of a run: values exchanged between them, and the client of JAX's coordination service."""

import json
import socket
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_json(value: Any) -> list[Any]:
    """Returns the value of every process, in the order of the processes. Collective: all processes call it.

    Args:
      value: anything that JSON can represent; it may differ between the processes.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    # All processes have to gather arrays of one shape. Powers of two, because every new shape compiles a program.
    width = max(64, 1 << int(sizes.max() - 1).bit_length())
    texts = multihost_utils.process_allgather(np.pad(data, (0, width - data.size)))
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def host_name() -> str:
    """Returns the name of this host and the index of this process, for messages."""
    return f"{socket.gethostname()} (process {jax.process_index()})"


class CoordinationClient(Protocol):
    """The methods of jaxlib's DistributedRuntimeClient that this library uses: a key-value store and barriers."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


def coordination_client() -> CoordinationClient:
    """Returns the client of JAX's coordination service, to which JAX gives no public name.

    Raises:
      RuntimeError: `jax.distributed.initialize` has not been called.
    """
    from jax._src import distributed

    client: Any = distributed.global_state.client
    if client is None:
        raise RuntimeError("there are several processes but no coordination service; call jax.distributed.initialize()")
    return client
