"""Estimates the time of a step and the bill of a training run from what the compiler says about the program."""

import dataclasses
from typing import Self

from .hlo_collectives import Collective
from .hlo_costs import Cost
from .tpu_compiler import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """The devices that a program is compiled for.

    Attributes:
      chip: the kind of TPU.
      torus_axes: number of axes of the torus that the chips of a slice form.
      devices: number of JAX devices in all slices.
      slices: number of slices.
    """

    chip: Chip
    torus_axes: int
    devices: int
    slices: int = 1

    def seconds(self, collective: Collective) -> float:
        """Returns the time of a collective as a ring, without latencies.

        A ring over a whole slice uses the links of all axes of the torus, a smaller one those of one axis. Between
        slices the data-center network is the limit.

        Raises:
          ValueError: the network speed between slices of this chip is not published.
        """
        if collective.network == "dcn":
            if self.chip.network is None:
                raise ValueError("the network speed between slices of this chip is not published")
            return collective.wire_bytes / self.chip.network
        whole_slice = collective.group == self.devices // self.slices
        return collective.wire_bytes / (self.chip.link * (self.torus_axes if whole_slice else 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What the devices have to do.

    Attributes:
      step_flops: floating-point operations of a step on all devices, see `model_flops`.
      relative_flops: the part of them that the relative terms of attention take.
      step_tokens: tokens of a step on all devices.
      training_tokens: tokens of the whole training.
    """

    step_flops: int
    relative_flops: int
    step_tokens: int
    training_tokens: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundTiming:
    """A step that takes no longer than the bound of its program, see `hlo_costs`, and the waits for collectives.

    Attributes: see `Timing`.
    """

    step_seconds: float
    mfu: float
    mfu_without_relative: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Estimated times of a step, and what they amount to; nothing was run.

    Attributes:
      compute_seconds: the cycles of the program and its kernels, at the clock of the chip.
      unpriced_seconds: instructions without an estimate, by the bytes that they move in HBM.
      collective_seconds: the time that devices wait for collectives, without what computation hides.
      hidden_seconds: the time of collectives that is hidden behind computation.
      network_seconds: the part of the two that is spent between slices.
      step_seconds: the sum of the first three.
      mfu: the share of the chips' bfloat16 peak that the mathematics of the model uses.
      mfu_without_relative: the same without the relative terms of attention, as for a model that has none.
      bound: the same for the lower bound of the program; None if it is not known.
      tokens_per_second: of all devices.
      tokens: tokens of the whole training.
      days: duration of the whole training.
      chip_hours: chips times hours of the whole training.
    """

    compute_seconds: float
    unpriced_seconds: float
    collective_seconds: float
    hidden_seconds: float
    network_seconds: float
    step_seconds: float
    mfu: float
    mfu_without_relative: float
    bound: BoundTiming | None
    tokens_per_second: float
    tokens: float
    days: float
    chip_hours: float

    @classmethod
    def estimate(cls, cost: Cost, hardware: Hardware, workload: Workload) -> Self:
        """Converts cycles and bytes of one device into times of a step."""
        chip = hardware.chip
        waiting = hidden = between_slices = 0.0
        for collective in cost.collectives:
            seconds = hardware.seconds(collective)
            if collective.network == "dcn":
                between_slices += seconds
            overlapped = min(seconds, collective.beside_cycles / chip.clock)
            hidden += overlapped
            waiting += seconds - overlapped
        compute = (cost.cycles + sum(cost.kernel_cycles.values())) / chip.clock
        unpriced = cost.unpriced_bytes / chip.bandwidth
        step = compute + unpriced + waiting
        training = workload.training_tokens / workload.step_tokens * step
        fastest, plain_flops = hardware.devices * chip.peak, workload.step_flops - workload.relative_flops
        bound = None
        if cost.bound:
            least = cost.bound.cycles / chip.clock + waiting
            bound = BoundTiming(
                step_seconds=least,
                mfu=workload.step_flops / (least * fastest),
                mfu_without_relative=plain_flops / (least * fastest),
            )
        return cls(
            compute_seconds=compute,
            unpriced_seconds=unpriced,
            collective_seconds=waiting,
            hidden_seconds=hidden,
            network_seconds=between_slices,
            step_seconds=step,
            mfu=workload.step_flops / (step * fastest),
            mfu_without_relative=plain_flops / (step * fastest),
            bound=bound,
            tokens_per_second=workload.step_tokens / step,
            tokens=workload.training_tokens,
            days=training / 86400,
            chip_hours=training / 3600 * hardware.devices / chip.devices,
        )
