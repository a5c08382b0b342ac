"""Adds up what the TPU compiler says about a program: estimated cycles, kernels, collectives, and a bound beside them.

The estimate is the sum of the compiler's own figures. It has no figure for some instructions, which are priced by the
bytes that they move, and a poor one for others. The bound is a second figure that needs none of them. Of each
instruction it takes the largest of three lower bounds: the bundles that its schedule executes, the time of its products
at the published peak of the matrix units, and the time of its bytes at the published bandwidth of HBM. Neither contains
waits for memory inside an instruction.

The text of the program is read by `hlo_text`, `hlo_bytes` and `hlo_collectives`, whose docstrings say which versions of
libtpu and jax they were written for and what happens to text that they do not know.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

from .hlo_bytes import HbmTraffic
from .hlo_collectives import Collective, CollectiveFinder
from .hlo_text import HloProgram, Instruction, Occurrence
from .schedules import Schedule

# Opcodes that move no data, run beside other work (asynchronous copies), or are counted elsewhere (collectives).
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast iota after-all partition-id replica-id copy-start copy-done "
    "slice-start slice-done all-gather-done all-reduce-done collective-permute-done async-start async-update "
    "async-done send send-done recv recv-done optimization-barrier".split()
)
# The compiler's own routines that reserve or label memory: custom_call_target="AllocateBuffer"
_FREE_TARGETS = re.compile(
    r'custom_call_target="(AllocateBuffer|ConcatBitcast|Assume\w+|GatherScatterIndices\w+|AsyncCollective\w+)"'
)
# A Pallas kernel, by the name that JAX gives it: metadata={op_name="jit(step)/disentangled_forward/pallas_call" ...}
_KERNEL = re.compile(r"/([^/\"]+)/pallas_call")
# What an instruction without an estimate is, from the same place: metadata={op_name="jit(step)/gather" ...}
_UNPRICED_KIND = re.compile(r"/(gather|scatter[\w\-]*|sort|top_k|pallas_call)\"")
_SMALL = 4096  # bytes: instructions with smaller results, such as arithmetic on random keys, are not listed as unpriced


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peaks:
    """The published speed of a device, as far as the bound needs it.

    Attributes:
      bytes_per_cycle: of HBM.
      cycles_per_product: cycles between the instructions of a core that multiply a vector register with a matrix, if
        all its matrix units work at their published peak. The compiler schedules some of them twice as fast.
    """

    bytes_per_cycle: float
    cycles_per_product: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower bound of the cycles of one run of a program on one device, without waits for memory and collectives.

    Attributes:
      cycles: the sum over all instructions of the largest of `bundle`, `matrix` and HBM cycles.
      bundle_cycles: the bundles that the schedules execute.
      matrix_cycles: the products of the schedules at the peak of the matrix units.
      hbm_cycles: `hbm_bytes` at the peak bandwidth.
      hbm_bytes: the bytes that instructions and asynchronous copies move between HBM and the core.
      unscheduled_cycles: the part of `cycles` from instructions without a schedule, by their estimates and bytes.
    """

    cycles: int
    bundle_cycles: int
    matrix_cycles: int
    hbm_cycles: int
    hbm_bytes: int
    unscheduled_cycles: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The compiler's figures for one run of a program on one device.

    Attributes:
      cycles: the sum of its estimates, with the body of each loop counted as often as it runs.
      kernel_cycles: executed bundles by Pallas kernel, see `schedules`.
      unpriced: instructions without an estimate whose results are not small: kind -> how many run.
      unpriced_bytes: the bytes that they move, see `hlo_bytes`.
      collectives: what the device exchanges with others.
      bound: a lower bound of the cycles; None without schedules.
    """

    cycles: int
    kernel_cycles: dict[str, int]
    unpriced: dict[str, int]
    unpriced_bytes: int
    collectives: tuple[Collective, ...]
    bound: Bound | None = None


def read_cost(text: str, *, schedules: Mapping[str, Schedule] | None = None, peaks: Peaks | None = None) -> Cost:
    """Adds up the figures for the instructions of an optimized program.

    Args:
      text: what `compiled.as_text()` returns.
      schedules: the schedules by the name of the instruction. Pallas kernels that are not in it are listed as unpriced.
      peaks: the speed of the device; without it, or without schedules, there is no bound.

    Raises:
      ValueError: the program has a loop, or a transfer between slices, of a form that cannot be counted.
    """
    program = HloProgram.parse(text)
    finder, traffic = CollectiveFinder(program), HbmTraffic(program)
    found = _ScheduleIndex(program, traffic, schedules or {})
    sums = _BoundSums(peaks) if schedules and peaks else None
    cycles = unpriced_bytes = 0
    kernel_cycles: collections.Counter[str] = collections.Counter()
    unpriced: collections.Counter[str] = collections.Counter()
    for occurrence in program.schedule():
        instruction, times = occurrence.instruction, occurrence.times
        if sums and instruction.opcode in ("copy-start", "slice-start"):
            sums.hbm_bytes += times * traffic.copied_bytes(instruction)
        if finder.observe(occurrence, cycles + kernel_cycles.total()):
            continue
        if occurrence.enclosing or _is_free(instruction):
            continue
        kernel, schedule, moved = _KERNEL.search(instruction.line), found.get(instruction), traffic.bytes(instruction)
        if kernel and schedule:
            kernel_cycles[kernel[1]] += times * schedule.bundles
        elif estimate := instruction.estimate:
            cycles += times * estimate
        elif instruction.result_bytes > _SMALL:
            kind = _UNPRICED_KIND.search(instruction.line)
            unpriced[kind[1] if kind else instruction.opcode] += times
            unpriced_bytes += times * moved
        if sums:
            sums.add(occurrence, schedule, moved)
    return Cost(
        cycles=cycles,
        kernel_cycles=dict(kernel_cycles),
        unpriced=dict(unpriced.most_common()),
        unpriced_bytes=unpriced_bytes,
        collectives=finder.collectives(),
        bound=sums.bound() if sums else None,
    )


class _ScheduleIndex:
    """Finds the schedule of an instruction, which the compiler may have written for an equal one of another name."""

    def __init__(self, program: HloProgram, traffic: HbmTraffic, schedules: Mapping[str, Schedule]) -> None:
        self._program, self._traffic, self._by_name = program, traffic, schedules
        self._by_work: dict[tuple[object, ...], Schedule] = {}
        for instructions in program.computations.values() if schedules else ():
            for instruction in instructions:
                if schedule := schedules.get(instruction.name):
                    self._by_work.setdefault(self._work(instruction), schedule)

    def get(self, instruction: Instruction) -> Schedule | None:
        if not self._by_name:
            return None
        return self._by_name.get(instruction.name) or self._by_work.get(self._work(instruction))

    def _work(self, instruction: Instruction) -> tuple[object, ...]:
        """Returns what equal instructions have in common: types with memory spaces, and what a fusion computes."""
        kernel = _KERNEL.search(instruction.line)
        inside = self._program.computations.get(instruction.fused or "", ())
        return (
            instruction.opcode,
            kernel[1] if kernel else None,
            instruction.type,
            tuple(operand.type for operand in self._traffic.operands(instruction)),
            tuple((inner.opcode, inner.type) for inner in inside),
        )


class _BoundSums:
    """Adds up the bound of a program, instruction by instruction."""

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = peaks
        self._cycles = self._bundles = self._products = self._unscheduled = 0.0
        self.hbm_bytes = 0

    def add(self, occurrence: Occurrence, schedule: Schedule | None, moved: int) -> None:
        """Adds an instruction that moves so many bytes in each of its runs."""
        times, hbm = occurrence.times, moved / self._peaks.bytes_per_cycle
        self.hbm_bytes += times * moved
        if schedule is None:
            largest = max(occurrence.instruction.estimate, hbm)
            self._unscheduled += times * largest
        else:
            largest = max(schedule.bundles, schedule.products * self._peaks.cycles_per_product, hbm)
            self._bundles += times * schedule.bundles
            self._products += times * schedule.products
        self._cycles += times * largest

    def bound(self) -> Bound:
        return Bound(
            cycles=round(self._cycles),
            bundle_cycles=round(self._bundles),
            matrix_cycles=round(self._products * self._peaks.cycles_per_product),
            hbm_cycles=round(self.hbm_bytes / self._peaks.bytes_per_cycle),
            hbm_bytes=self.hbm_bytes,
            unscheduled_cycles=round(self._unscheduled),
        )


def _is_free(instruction: Instruction) -> bool:
    return (
        instruction.opcode in _FREE
        or _FREE_TARGETS.search(instruction.line) is not None
        or "calls=%all-reduce-scatter" in instruction.line  # the collective inside it is counted by the finder
    )
