"""A program as the TPU compiler left it, read from its text: cycles, collectives and what has no estimate."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from deberta_jax.errors import UserError

Shapes = tuple[tuple[int, ...], ...]
KernelKey = tuple[str, Shapes]  # name of a Pallas kernel, shapes of its results
Network = Literal["ici", "dcn"]

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing, or whose work is hidden behind others or counted elsewhere.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast iota after-all partition-id replica-id copy-start copy-done "
    "slice-start slice-done all-gather-done all-reduce-done collective-permute-done async-start async-update "
    "async-done send send-done recv recv-done optimization-barrier".split()
)
_SMALL = 4096  # bytes: scalar arithmetic, such as that of random keys, is not worth a line
_FREE_TARGETS = re.compile(
    r'custom_call_target="(AllocateBuffer|ConcatBitcast|Assume\w+|GatherScatterIndices\w+|AsyncCollective\w+)"'
)
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64} | {
    f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of one kind and size over groups of one size, in one run of the program.

    Attributes:
      network: ici, the links between the chips of a slice; dcn, the data center's network between slices.
      group: devices that take part, or slices.
      asynchronous: computation stands beside it in the schedule, however little; beside_cycles says how much.
      bytes: of all their results (of a reduce-scatter: of its input), a device.
      wire_bytes: what a device sends for them, if every one goes around a ring.
      beside_cycles: of the fusions that carry it a step further while they compute, or of what stands between its start
        and its end, counted once where several are under way. The name "start" in the compiler's text alone proves
        nothing: a collective that found no computation keeps it and runs by itself.
    """

    kind: str
    network: Network
    group: int
    asynchronous: bool
    count: int
    bytes: int
    wire_bytes: int
    beside_cycles: int


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
    """Adds up the instructions of an optimized program.

    Args:
      text: what `compiled.as_text()` gives.
      kernels: cycles of a run of each Pallas kernel.
      memory: the fields of Cost that end in _bytes.
    """
    computations, entry = _computations(text)
    finder = _CollectiveFinder(computations)
    cycles = unpriced_bytes = 0
    priced: collections.Counter[str] = collections.Counter()
    unpriced: collections.Counter[str] = collections.Counter()
    for instruction, times, whole in _walk(computations, entry, 1):
        if finder.takes(instruction, times, whole, cycles + priced.total()):
            continue
        if whole or instruction.opcode in _FREE or _FREE_TARGETS.search(instruction.line):
            continue
        if "calls=%all-reduce-scatter" in instruction.line:  # the collective in it was seen
            continue
        kernel = re.search(r"/([^/\"]+)/pallas_call", instruction.line)
        if kernel and (kernel[1], _shapes(instruction.type)) in kernels:
            priced[kernel[1]] += times * kernels[kernel[1], _shapes(instruction.type)]
        elif estimate := _estimate(instruction):
            cycles += times * estimate
        elif _bytes(instruction.type) > _SMALL:
            kind = re.search(r"/(gather|scatter[\w\-]*|sort|top_k|pallas_call)\"", instruction.line)
            unpriced[kind[1] if kind else instruction.opcode] += times
            unpriced_bytes += 2 * times * _bytes(instruction.type)
    return Cost(
        cycles=cycles,
        kernel_cycles=dict(priced),
        unpriced=dict(unpriced.most_common()),
        unpriced_bytes=unpriced_bytes,
        collectives=_grouped(finder.found),
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
    computations: dict[str, list[_Instruction]], name: str, times: int, whole: _Instruction | None = None
) -> Iterator[tuple[_Instruction, int, _Instruction | None]]:
    """Every instruction with how often it runs, and of what it is part that is priced as a whole; in their order."""
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
                yield from _walk(computations, inner, turns, whole)
        else:
            yield instruction, times, whole
            for inner in names:
                yield from _walk(computations, inner, times, whole or instruction)


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
        raise UserError(f"cannot tell how often the loop {loop.name} of the compiled program runs")
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


@dataclasses.dataclass
class _Found:
    """A collective of the text. beside: cycles of the computation that goes on meanwhile, given to one collective."""

    kind: str
    network: Network
    group: int
    times: int
    bytes: int
    wire_bytes: int
    asynchronous: bool = False
    beside: int = 0


class _CollectiveFinder:
    """Finds the collectives of a program that is given to it in the order of its schedule.

    An asynchronous one has one of three forms. Fusions: one starts it, others carry it on while they compute, one ends
    it, and each has it in its text, with one chain_id. A pair of instructions, that end in -start and -done. And
    between slices, a send and the end of the recv of the same rendezvous.
    """

    def __init__(self, computations: Mapping[str, list[_Instruction]]) -> None:
        self.found: list[_Found] = []
        self._starting = _with_target(computations, "AsyncCollectiveStart")
        self._ending = _with_target(computations, "AsyncCollectiveDone")
        self._carried: dict[tuple[str, ...], _Found] = {}  # by channel and chain
        self._begun: dict[str, tuple[_Found, int]] = {}  # by the start's name, or rendezvous; cycles until then
        self._ended: dict[Network, int] = {}  # cycles until the last end of a pair
        self._received: dict[str, str] = {}  # name of a recv -> its rendezvous

    def takes(self, instruction: _Instruction, times: int, whole: _Instruction | None, cycles: int) -> bool:
        """Whether this is a collective or part of one. whole: what it is in; cycles: of all that stands before it."""
        opcode = instruction.opcode
        called = re.search(r"calls=%?([^,\s]+)", instruction.line)
        if called and called[1] in self._starting | self._ending:
            return True  # what is inside comes next
        if opcode.removesuffix("-start") in _COLLECTIVES:
            self._take(instruction, times, whole, cycles)
            return True
        rendezvous = re.search(r'_xla_host_transfer_rendezvous="([^"]+)"', instruction.line)
        if rendezvous and opcode == "send":
            self._begun[rendezvous[1]] = self._add(_between_slices(instruction, times)), cycles
        elif rendezvous and opcode == "recv":
            self._received[instruction.name] = rendezvous[1]
        elif opcode.endswith(("-done", "async-update")):
            operand = re.search(rf" {opcode}\(%?([^,)\s]+)", instruction.line)
            begun = self._begun.get(self._received.get(operand[1], operand[1])) if operand else None
            if begun and opcode == "async-update":
                self._begun[instruction.name] = begun
            elif begun:
                self._end(*begun, cycles)
        return rendezvous is not None

    def _take(self, instruction: _Instruction, times: int, whole: _Instruction | None, cycles: int) -> None:
        chain = tuple(re.findall(r'(?:channel_id=|chain_id=")(\d+)', instruction.line))
        if instruction.within in self._starting:
            self._carried[chain] = self._add(_in_slice(instruction, times))
        elif whole and chain in self._carried:
            if instruction.within in self._ending:
                del self._carried[chain]
            else:
                self._carried[chain].beside += times * _estimate(whole)
                self._carried[chain].asynchronous |= _estimate(whole) > 0
        else:
            found = self._add(_in_slice(instruction, times))
            start = whole if whole and whole.opcode == "async-start" else instruction
            if start.opcode.endswith("-start"):
                self._begun[start.name] = found, cycles

    def _end(self, found: _Found, begun: int, cycles: int) -> None:
        """Several pairs that are open together share a network and the computation: it counts for the first to end."""
        found.asynchronous |= cycles > begun
        found.beside += cycles - max(begun, self._ended.get(found.network, 0))
        self._ended[found.network] = cycles

    def _add(self, found: _Found) -> _Found:
        self.found.append(found)
        return found


def _with_target(computations: Mapping[str, list[_Instruction]], target: str) -> frozenset[str]:
    """Names of the computations that call the compiler's own code of this name."""
    text = f'custom_call_target="{target}"'
    return frozenset(name for name, inside in computations.items() if any(text in one.line for one in inside))


def _in_slice(instruction: _Instruction, times: int) -> _Found:
    kind, size, group = instruction.opcode.removesuffix("-start"), _bytes(instruction.type), _group(instruction)
    if kind == "all-reduce" and "all-reduce-scatter" in instruction.within:
        kind = "reduce-scatter"  # how a TPU does it: what it keeps of the sum is cut out in the same fusion
    elif kind == "reduce-scatter":
        size *= group  # of its input
    share = (group - 1) / group
    wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    return _Found(kind, "ici", group, times, size, int(wire * size))


def _between_slices(send: _Instruction, times: int) -> _Found:
    """A device's part of a transfer between slices: what it sends is a shard of what its slice has in whole."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.line)
    slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}', send.line)
    kind, size = transfer[1] if transfer else "", _bytes(send.type.split(", u32[]")[0])
    if kind == "ONE_TO_ONE":
        return _Found("collective-permute", "dcn", 2, times, size, size)
    if not slices or kind not in ("ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER", "ALL_TO_ALL"):
        raise UserError(f"cannot tell what {send.name} of the compiled program sends to other slices, {kind!r}")
    group = slices[1].count(",") + 1
    size *= group if kind == "ALL_GATHER" else 1  # of its result
    wire = size * (2 if kind == "ALL_REDUCE" else 1) * (group - 1) // group
    return _Found(kind.lower().replace("_", "-"), "dcn", group, times, size, wire)


def _grouped(found: Iterable[_Found]) -> tuple[Collective, ...]:
    """Collectives of one kind, network, group, size and way of running together, the largest first."""
    totals: dict[tuple[str, Network, int, bool, int], list[int]] = {}
    for one in found:
        total = totals.setdefault((one.kind, one.network, one.group, one.asynchronous, one.bytes), [0, 0, 0, 0])
        amounts = (one.times, one.times * one.bytes, one.times * one.wire_bytes, one.beside)
        total[:] = (sum(pair) for pair in zip(total, amounts, strict=True))
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return tuple(
        Collective(
            kind=kind,
            network=network,
            group=group,
            asynchronous=asynchronous,
            count=count,
            bytes=size,
            wire_bytes=wire,
            beside_cycles=beside,
        )
        for (kind, network, group, asynchronous, _), (count, size, wire, beside) in ordered
    )


def _estimate(instruction: _Instruction) -> int:
    """The compiler's cycles of an instruction, 0 where it gives none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.line)
    return int(found[1]) if found else 0


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
