"""Adds up what the TPU compiler estimates for a program: cycles, kernels, collectives, and what has no estimate.

The text of the program is read by `hlo_text` and `hlo_collectives`, whose docstrings say which versions of libtpu and
jax they were written for and what happens to text that they do not know.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

from .hlo_collectives import Collective, CollectiveFinder
from .hlo_text import HloProgram, Instruction, Shapes

KernelKey = tuple[str, Shapes]  # name of a Pallas kernel, shapes of its results

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
class Cost:
    """The compiler's estimates for one run of a program on one device.

    Attributes:
      cycles: the sum of its estimates, with the body of each loop counted as often as it runs.
      kernel_cycles: cycles by Pallas kernel, see `kernel_costs`.
      unpriced: instructions without an estimate whose results are not small: kind -> how many run.
      unpriced_bytes: twice the size of their results, as if each were read and written once.
      collectives: what the device exchanges with others.
    """

    cycles: int
    kernel_cycles: dict[str, int]
    unpriced: dict[str, int]
    unpriced_bytes: int
    collectives: tuple[Collective, ...]


def read_cost(text: str, *, kernels: Mapping[KernelKey, int]) -> Cost:
    """Adds up the estimates for the instructions of an optimized program.

    Args:
      text: what `compiled.as_text()` returns.
      kernels: cycles of one run of each Pallas kernel. Kernels that are not in it are listed as unpriced.

    Raises:
      ValueError: the program has a loop, or a transfer between slices, of a form that cannot be counted.
    """
    program = HloProgram.parse(text)
    finder = CollectiveFinder(program)
    cycles = unpriced_bytes = 0
    kernel_cycles: collections.Counter[str] = collections.Counter()
    unpriced: collections.Counter[str] = collections.Counter()
    for occurrence in program.schedule():
        instruction, times = occurrence.instruction, occurrence.times
        if finder.observe(occurrence, cycles + kernel_cycles.total()):
            continue
        if occurrence.enclosing or _is_free(instruction):
            continue
        kernel = _KERNEL.search(instruction.line)
        if kernel and (kernel[1], instruction.result_shapes) in kernels:
            kernel_cycles[kernel[1]] += times * kernels[kernel[1], instruction.result_shapes]
        elif estimate := instruction.estimate:
            cycles += times * estimate
        elif instruction.result_bytes > _SMALL:
            kind = _UNPRICED_KIND.search(instruction.line)
            unpriced[kind[1] if kind else instruction.opcode] += times
            unpriced_bytes += 2 * times * instruction.result_bytes
    return Cost(
        cycles=cycles,
        kernel_cycles=dict(kernel_cycles),
        unpriced=dict(unpriced.most_common()),
        unpriced_bytes=unpriced_bytes,
        collectives=finder.collectives(),
    )


def _is_free(instruction: Instruction) -> bool:
    return (
        instruction.opcode in _FREE
        or _FREE_TARGETS.search(instruction.line) is not None
        or "calls=%all-reduce-scatter" in instruction.line  # the collective inside it is counted by the finder
    )
