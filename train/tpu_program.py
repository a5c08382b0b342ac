"""A program as the TPU compiler left it, read from its text: cycles, collectives and what has no estimate."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping

Shapes = tuple[tuple[int, ...], ...]
KernelKey = tuple[str, Shapes]  # name of a Pallas kernel, shapes of its results

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing, or whose work is hidden behind others or counted elsewhere.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast iota after-all partition-id replica-id copy-start copy-done "
    "slice-start slice-done all-gather-done all-reduce-done collective-permute-done async-start async-update "
    "async-done optimization-barrier".split()
)
_SMALL = 4096  # bytes: scalar arithmetic, such as that of random keys, is not worth a line
_FREE_TARGETS = re.compile(
    r'custom_call_target="(AllocateBuffer|ConcatBitcast|Assume\w+|GatherScatterIndices\w+|AsyncCollective\w+)"'
)
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64} | {
    f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size, in one run of the program.

    bytes: of their results (of a reduce-scatter: of its input), a device. wire_bytes: what a device sends, if every one
    goes around a ring. asynchronous: computation goes on meanwhile.
    """

    kind: str
    group: int
    asynchronous: bool
    count: int
    bytes: int
    wire_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What the compiler says of a program, a device.

    Attributes:
      argument_bytes, temporary_bytes, program_bytes: state and batch, scratch (some of it not in HBM), code.
      peak_bytes: the most of HBM that is in use at a time, code aside.
      cycles: the compiler's estimates summed, each loop's body as often as it runs.
      kernel_cycles: of each Pallas kernel, see tpu_kernels.
      unpriced: instructions without an estimate whose results are not small: kind -> how many run.
      unpriced_bytes: twice the size of their results, as read and written once.
    """

    argument_bytes: int
    temporary_bytes: int
    program_bytes: int
    peak_bytes: int
    cycles: int
    kernel_cycles: dict[str, int]
    unpriced: dict[str, int]
    unpriced_bytes: int
    collectives: tuple[Collective, ...]


def read_cost(text: str, *, kernels: Mapping[KernelKey, int], **memory: int) -> Cost:
    """Adds up the instructions of an optimised program.

    Args:
      text: what `compiled.as_text()` gives.
      kernels: cycles of a run of each Pallas kernel.
      memory: the fields of Cost that end in _bytes.
    """
    computations, entry = _computations(text)
    cycles = unpriced_bytes = 0
    priced: collections.Counter[str] = collections.Counter()
    unpriced: collections.Counter[str] = collections.Counter()
    collectives: dict[str, tuple[_Instruction, int, bool]] = {}
    for instruction, times, fused in _walk(computations, entry, 1):
        if instruction.opcode.removesuffix("-start") in _COLLECTIVES:
            # An asynchronous collective is printed in every computation that it is spread over, with one channel.
            channel = re.search(r"channel_id=(\d+)", instruction.line)
            name = channel[1] if channel else instruction.name
            spread = fused and name in collectives
            collectives.setdefault(name, (instruction, times, False))
            if spread or "async_collective" in instruction.line or instruction.opcode.endswith("-start"):
                collectives[name] = (*collectives[name][:2], True)
            continue
        if fused or instruction.opcode in _FREE or _FREE_TARGETS.search(instruction.line):
            continue
        if "calls=%all-reduce-scatter" in instruction.line:  # the collective in it was seen
            continue
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
        kernel = re.search(r"/([^/\"]+)/pallas_call", instruction.line)
        if kernel and (kernel[1], _shapes(instruction.type)) in kernels:
            priced[kernel[1]] += times * kernels[kernel[1], _shapes(instruction.type)]
            continue
        if estimate and int(estimate[1]):
            cycles += times * int(estimate[1])
        elif _bytes(instruction.type) > _SMALL:
            kind = re.search(r"/(gather|scatter[\w\-]*|sort|top_k|pallas_call)\"", instruction.line)
            unpriced[kind[1] if kind else instruction.opcode] += times
            unpriced_bytes += 2 * times * _bytes(instruction.type)
    return Cost(
        cycles=cycles,
        kernel_cycles=dict(priced),
        unpriced=dict(unpriced.most_common()),
        unpriced_bytes=unpriced_bytes,
        collectives=_grouped(collectives.values()),
        **memory,
    )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    line: str
    within: str  # the computation


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and the name of the one that the program starts with."""
    computations: dict[str, list[_Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            if line.endswith("{") and " (" in line:
                name = line.removeprefix("ENTRY ").split(" (")[0].lstrip("%")
                computations[name] = []
                entry = name if line.startswith("ENTRY") else entry
            continue
        found = re.match(r"\s+(?:ROOT )?%?(\S+) = (.*?[\]})]) ([a-z][a-z0-9\-]*)\(", line)
        if found and name:
            computations[name].append(_Instruction(found[1], found[2], found[3], line, name))
    return computations, entry


def _walk(
    computations: dict[str, list[_Instruction]], name: str, times: int, fused: bool = False
) -> Iterator[tuple[_Instruction, int, bool]]:
    """Every instruction with how often it runs, and whether it is part of another that is priced as a whole."""
    for instruction in computations.get(name, ()):
        called = re.findall(
            r"(?:calls|body|branch_computations|true_computation|false_computation)=(\{[^}]*\}|\S+)", instruction.line
        )
        names = [one.strip("%, ") for group in called for one in group.strip("{},").split(",")]
        if instruction.opcode == "call":
            names += re.findall(r"to_apply=%?([^,\s]+)", instruction.line)
        if instruction.opcode in ("while", "conditional", "call"):
            turns = times * (_turns(computations, instruction) if instruction.opcode == "while" else 1)
            for inner in names:
                yield from _walk(computations, inner, turns, fused)
        else:
            yield instruction, times, fused
            for inner in names:
                yield from _walk(computations, inner, times, True)


def _turns(computations: dict[str, list[_Instruction]], loop: _Instruction) -> int:
    """How often a loop runs: it counts from 0 to the one constant of its condition.

    Raises:
      ValueError: a loop of another kind.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([^,\s]+)", loop.line)
    lines = [one.line for one in computations.get(condition[1] if condition else "", ())]
    constants = re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", "\n".join(lines))
    if len(constants) != 1:
        raise ValueError(f"cannot tell how often the loop {loop.name} of the compiled program runs")
    return int(constants[0])


def _shapes(text: str) -> Shapes:
    """A type such as "(f32[8,128]{1,0:T(8,128)}, s32[])" -> ((8, 128), ())."""
    return tuple(
        tuple(int(size) for size in sizes.split(",") if size)
        for _, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    )


def _bytes(text: str) -> int:
    types = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    return sum(_BITS.get(kind, 0) * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in types) // 8


def _grouped(found: Iterable[tuple[_Instruction, int, bool]]) -> tuple[Collective, ...]:
    """Collectives of one kind, group size and way of running together, the largest first."""
    totals: dict[tuple[str, int, bool], list[int]] = {}
    for instruction, times, asynchronous in found:
        kind, size, group = instruction.opcode.removesuffix("-start"), _bytes(instruction.type), _group(instruction)
        if kind == "all-reduce" and "all-reduce-scatter" in instruction.within:
            kind = "reduce-scatter"  # how a TPU does it: what it keeps of the sum is cut out in the same fusion
        elif kind == "reduce-scatter":
            size *= group  # of its input
        share = (group - 1) / group
        wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
        total = totals.setdefault((kind, group, asynchronous), [0, 0, 0])
        for position, amount in enumerate((1, size, int(wire * size))):
            total[position] += times * amount
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return tuple(Collective(*key, *total) for key, total in ordered)


def _group(instruction: _Instruction) -> int:
    """Devices in each group of a collective."""
    line = instruction.line
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([^}]*)\}", line):
        return found[1].count(",") + 1
    return 2  # a permutation names pairs
