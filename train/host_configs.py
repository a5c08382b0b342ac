"""The settings of the devices and processes of a run."""

import dataclasses
from typing import Annotated

from deberta_jax.errors import UserError

from .settings import NotNegative, Positive, Range, Seconds, Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Settings):
    """Number of devices along each axis of the mesh; data parallelism uses the remaining ones"""

    PREFIX = "mesh."

    zero: Positive = 1
    """devices that shard the optimizer's moments (ZeRO-1) and the batch"""
    fsdp: Positive = 1
    """devices that shard the parameters and the batch"""
    tensor: Positive = 1
    """devices that shard attention heads, feed-forward and vocabulary"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig(Settings):
    """The processes of a run, one per host; detected automatically on Cloud TPU and under Slurm or Open MPI"""

    PREFIX = "hosts."

    coordinator: str | None = None
    """ADDRESS:PORT of process 0, where JAX cannot detect it; needs count and index (default:
    detected)"""
    count: Positive | None = None
    """number of processes (default: detected)"""
    index: NotNegative | None = None
    """number of this process, from 0 (default: detected)"""
    start_within: Annotated[int, Range(at_least=1, at_most=10**6)] = 600
    """seconds to wait at the start until all processes have joined"""
    dead_after: Annotated[float, Range(above=0, at_most=10**6)] = 30.0
    """seconds without a heartbeat after which a process counts as lost and the others exit with code 42"""
    stall_after: Seconds = 120.0
    """seconds in one step, or waiting for one batch, after which all processes exit with code 42 (at least ten times
    the fastest step)"""
    slow_after: Seconds = 1800.0
    """the same limit for compiling, restoring, evaluating and saving"""
    clock_within: Seconds = 10.0
    """largest difference in seconds between the clocks of the hosts"""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("coordinator", "count", "index") if getattr(self, name) is not None]
        if len(given) not in (0, 3):
            raise UserError(f"hosts: {' and '.join(given)} given; give coordinator, count and index, or none of them")
        if self.coordinator is not None:
            split_address(self.coordinator)
        if self.count is not None and self.index is not None and self.index >= self.count:
            raise UserError(f"hosts: index is {self.index}; it must be 0 to {self.count - 1}, count being {self.count}")


def split_address(address: str) -> tuple[str, int]:
    """Returns the host and the port of ADDRESS:PORT; an IPv6 address is in brackets, which are removed.

    Raises:
      UserError: it has another form.
    """
    host, _, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535) or not host.strip("[]"):
        fault = "it must be ADDRESS:PORT with a port from 1 to 65535, such as 10.0.0.1:1234"
    elif ":" in host and not is_bracketed:
        fault = "write an IPv6 address in brackets, such as [::1]:1234"
    else:
        return host[1:-1] if is_bracketed else host, int(port)
    raise UserError(f"hosts.coordinator is {address!r}; {fault}")
