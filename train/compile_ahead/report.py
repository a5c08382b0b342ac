"""The report on one compiled step: its settings, memory, cost and timing."""

import dataclasses
from typing import Any

from .hlo_costs import Cost
from .step_program import StepConfig
from .timing import Timing
from .tpu_compiler import MemoryUse


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes of one device: a chip, or one of the two cores of a tpu7x chip.

    Attributes:
      parameter_bytes, optimizer_bytes, batch_bytes: the device's shards of the arguments.
      needed_bytes: the peak; for a step that does not fit, what the compiler says that it needs.
      available_bytes: what a program may use.
      compiled: the compiler's account of the program; None if it does not fit.
    """

    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    needed_bytes: int
    available_bytes: int
    compiled: MemoryUse | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the compiler says about one training step.

    Attributes:
      config: the settings that the program depends on.
      flags: flags of the compiler, name -> value.
      mesh: sizes of the mesh's axes.
      chips: number of chips in all slices.
      devices: number of JAX devices in all slices.
      rows: rows of the batch that a device processes in one accumulation step.
      memory: memory of one device.
      cost: cost of one step on one device; None if it does not fit.
      timing: times and bill; None if it does not fit.
      compile_seconds, compile_cpu_seconds: what compiling took, in elapsed and in CPU time.
    """

    config: StepConfig
    flags: dict[str, str]
    mesh: dict[str, int]
    chips: int
    devices: int
    rows: int
    memory: DeviceMemory
    cost: Cost | None
    timing: Timing | None
    compile_seconds: float
    compile_cpu_seconds: float

    @property
    def fits(self) -> bool:
        return self.cost is not None

    def to_json(self) -> dict[str, Any]:
        """Returns the report as `compile-ahead --json` prints it. Its keys are a format that scripts read."""
        values = dataclasses.asdict(self)
        memory, config, flags = (values.pop(name) for name in ("memory", "config", "flags"))
        compiled = memory.pop("compiled")
        if compiled is not None:
            values["cost"] |= compiled
        # The config may be of a subclass that has options about reports besides.
        settings = {field.name: config[field.name] for field in dataclasses.fields(StepConfig)}
        return {
            "source": "compiler estimate; nothing was run",
            "fits": self.fits,
            "settings": {**settings, "xla_flags": flags},
            **memory,
            **values,
        }


def describe(config: StepConfig) -> str:
    """Returns one line about a step; settings of the mesh and of memory are named where they are not the defaults."""
    parts = [
        f"{config.model} {config.task} on {describe_slices(config)}",
        f"{config.global_batch} rows of {config.sequence_length} tokens",
        config.dtype,
    ]
    if config.accumulation > 1:
        parts.append(f"accumulation {config.accumulation}")
    if config.remat:
        parts.append("remat")
    if config.kept_layers:
        parts.append(f"{config.kept_layers} kept layers")
    parts += [f"{axis} {size}" for axis, size in dataclasses.asdict(config.mesh).items() if size > 1]
    return ", ".join(parts)


def describe_slices(config: StepConfig) -> str:
    """Returns the hardware of a step, such as "v5e:16x16" or "2 slices of v5e:16x16"."""
    return f"{config.slices} slices of {config.topology}" if config.slices > 1 else config.topology
