"""Finds the collectives of a compiled TPU program: their bytes, and the computation that overlaps with them.

Like `hlo_text`, this was written for the text of libtpu 0.0.42 under jax 0.10.2. A transfer between slices of an
unknown kind raises ValueError, because its bytes cannot be computed.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from .hlo_text import HloProgram, Instruction, Occurrence, type_bytes

Network = Literal["ici", "dcn"]

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# The computation of a fusion: calls=%inside.1
_CALLS = re.compile(r"calls=%?([^,\s]+)")
# What makes two lines the same collective: channel_id=3 and, in frontend_attributes, chain_id="0"
_CHANNEL = re.compile(r'(?:channel_id=|chain_id=")(\d+)')
# Groups of devices, in one of three forms:
#   replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}    named axes of a mesh; the group spans those in {}
#   replica_groups=[2,4]<=[8]                                         2 groups of 4
#   replica_groups={{0,1,2,3},{4,5,6,7}}                              listed
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([^}]*)\}")
# Transfers between slices are a send and a recv with the same rendezvous, in frontend_attributes:
#   _xla_host_transfer_rendezvous="all-reduce.93_0",_xla_megascale_target="{1,2,3}x{0:3}",
#   _xla_megascale_transfer_type="ALL_REDUCE"
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]+)"')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TARGET_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of one kind and size over groups of one size, in one run of the program on one device.

    Attributes:
      kind: the opcode, such as "all-reduce".
      network: "ici" for the links between the chips of a slice, "dcn" for the data-center network between slices.
      group: number of devices that take part; of slices if the network is "dcn".
      asynchronous: computation is scheduled beside it. `beside_cycles` says how much, which may be very little. The
        word "start" in an instruction's name is no proof: a collective without computation to overlap keeps the name
        and runs alone.
      count: how many of them run.
      bytes: the size of all their results; of a reduce-scatter, of its input.
      wire_bytes: what a device sends if each of them is executed as a ring.
      beside_cycles: cycles of computation that overlap with them. Cycles that overlap with several collectives at once
        count for one of them only.
    """

    kind: str
    network: Network
    group: int
    asynchronous: bool
    count: int
    bytes: int
    wire_bytes: int
    beside_cycles: int


class ReductionBytes(NamedTuple):
    """Bytes that a device reduces within its slice in a step."""

    asynchronous: int
    total: int


def reduction_bytes(collectives: Iterable[Collective]) -> ReductionBytes:
    """Adds up all-reduces and reduce-scatters within a slice.

    They carry gradients, apart from scalars and, on a mesh with a tensor axis, activations.
    """
    reductions = [
        collective
        for collective in collectives
        if collective.network == "ici" and collective.kind in ("all-reduce", "reduce-scatter")
    ]
    asynchronous = sum(collective.bytes for collective in reductions if collective.asynchronous)
    return ReductionBytes(asynchronous, sum(collective.bytes for collective in reductions))


@dataclasses.dataclass
class _Transfer:
    """One collective instruction of the program. `beside` grows while later instructions are read."""

    kind: str
    network: Network
    group: int
    times: int
    bytes: int
    wire_bytes: int
    asynchronous: bool = False
    beside: int = 0


class CollectiveFinder:
    """Finds the collectives of a program whose instructions are passed to `observe` in the order of the schedule.

    An asynchronous collective takes one of three forms:

    * A chain of fusions. The first starts the collective, the following ones advance it while they compute, the last
      completes it. The text of each contains the collective, with the same channel and chain id.
    * A pair of instructions whose opcodes end in -start and -done. What is scheduled between them overlaps.
    * Between slices: a send, and the completion of the recv with the same rendezvous. What is scheduled in between
      overlaps.
    """

    def __init__(self, program: HloProgram) -> None:
        self._transfers: list[_Transfer] = []
        self._starting = _computations_with_target(program, "AsyncCollectiveStart")
        self._completing = _computations_with_target(program, "AsyncCollectiveDone")
        self._chains: dict[tuple[str, ...], _Transfer] = {}  # open chains, by channel and chain id
        # Open pairs, by the name of the start or the rendezvous, with the cycles scheduled before the start.
        self._pairs: dict[str, tuple[_Transfer, int]] = {}
        self._last_done: dict[Network, int] = {}  # cycles scheduled before the last pair was completed
        self._rendezvous: dict[str, str] = {}  # name of a recv -> its rendezvous

    def observe(self, occurrence: Occurrence, elapsed: int) -> bool:
        """Returns whether an instruction is a collective or part of one, and keeps account of it.

        Args:
          occurrence: the next instruction.
          elapsed: the cycles of all computation scheduled before it.
        """
        instruction = occurrence.instruction
        opcode = instruction.opcode
        called = _CALLS.search(instruction.line)
        if called and called[1] in self._starting | self._completing:
            return True  # the collective itself follows, as an instruction of the called computation
        if opcode.removesuffix("-start") in COLLECTIVES:
            self._observe_collective(occurrence, elapsed)
            return True
        rendezvous = _RENDEZVOUS.search(instruction.line)
        if rendezvous and opcode == "send":
            self._pairs[rendezvous[1]] = self._add(_transfer_between_slices(instruction, occurrence.times)), elapsed
        elif rendezvous and opcode == "recv":
            self._rendezvous[instruction.name] = rendezvous[1]
        elif opcode.endswith(("-done", "async-update")):
            # Its operand is the start, an update of the start, or a recv: all-reduce-done(%all-reduce-start.1)
            operand = re.search(rf" {opcode}\(%?([^,)\s]+)", instruction.line)
            pair = self._pairs.get(self._rendezvous.get(operand[1], operand[1])) if operand else None
            if pair and opcode == "async-update":
                self._pairs[instruction.name] = pair
            elif pair:
                self._complete_pair(*pair, elapsed)
        return rendezvous is not None

    def collectives(self) -> tuple[Collective, ...]:
        """Returns the collectives of all instructions so far, the largest first."""
        return _grouped(self._transfers)

    def _observe_collective(self, occurrence: Occurrence, elapsed: int) -> None:
        instruction, enclosing = occurrence.instruction, occurrence.enclosing
        chain = tuple(_CHANNEL.findall(instruction.line))
        if instruction.computation in self._starting:
            self._chains[chain] = self._add(_transfer_in_slice(instruction, occurrence.times))
        elif enclosing and chain in self._chains:
            if instruction.computation in self._completing:
                # shard_map gives several collectives one channel: without this, the next would join a finished chain.
                del self._chains[chain]
            else:
                transfer = self._chains[chain]
                transfer.beside += occurrence.times * enclosing.estimate
                transfer.asynchronous |= enclosing.estimate > 0
        else:
            transfer = self._add(_transfer_in_slice(instruction, occurrence.times))
            start = enclosing if enclosing and enclosing.opcode == "async-start" else instruction
            if start.opcode.endswith("-start"):
                self._pairs[start.name] = transfer, elapsed

    def _complete_pair(self, transfer: _Transfer, started: int, elapsed: int) -> None:
        """Counts the cycles since the start of a pair, or since the last completion on the same network.

        Pairs that are open at the same time share the network, so they cannot each be hidden by the same computation:
        it counts for the pair that completes first.
        """
        transfer.asynchronous |= elapsed > started
        transfer.beside += elapsed - max(started, self._last_done.get(transfer.network, 0))
        self._last_done[transfer.network] = elapsed

    def _add(self, transfer: _Transfer) -> _Transfer:
        self._transfers.append(transfer)
        return transfer


def _computations_with_target(program: HloProgram, target: str) -> frozenset[str]:
    """Returns the names of the computations that call a routine of the compiler."""
    call = f'custom_call_target="{target}"'
    return frozenset(
        name
        for name, instructions in program.computations.items()
        if any(call in instruction.line for instruction in instructions)
    )


def _transfer_in_slice(instruction: Instruction, times: int) -> _Transfer:
    kind, size, group = instruction.opcode.removesuffix("-start"), instruction.result_bytes, _group_size(instruction)
    if kind == "all-reduce" and "all-reduce-scatter" in instruction.computation:
        # TPUs implement a reduce-scatter as an all-reduce and a slice of its result, fused into one computation.
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        size *= group  # the size of its input
    # In a ring of n devices, each sends (n - 1) / n of the data; an all-reduce is a reduce-scatter and an all-gather.
    share = (group - 1) / group
    wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    return _Transfer(kind, "ici", group, times, size, int(wire * size))


def _transfer_between_slices(send: Instruction, times: int) -> _Transfer:
    """Returns a device's part of a transfer between slices: it sends one shard of what its slice holds.

    Raises:
      ValueError: the transfer is of an unknown kind.
    """
    transfer, slices = _TRANSFER.search(send.line), _TARGET_SLICES.search(send.line)
    kind = transfer[1] if transfer else ""
    size = type_bytes(send.type.split(", u32[]")[0])  # the result is (data, u32[], token[]): only the data is sent
    if kind == "ONE_TO_ONE":
        return _Transfer("collective-permute", "dcn", 2, times, size, size)
    if not slices or kind not in ("ALL_REDUCE", "ALL_GATHER", "REDUCE_SCATTER", "ALL_TO_ALL"):
        raise ValueError(f"cannot tell what {send.name} of the compiled program sends to other slices, {kind!r}")
    group = slices[1].count(",") + 1
    size *= group if kind == "ALL_GATHER" else 1  # the size of its result
    wire = size * (2 if kind == "ALL_REDUCE" else 1) * (group - 1) // group
    return _Transfer(kind.lower().replace("_", "-"), "dcn", group, times, size, wire)


def _grouped(transfers: Iterable[_Transfer]) -> tuple[Collective, ...]:
    """Combines transfers of one kind, network, group, size and form, the largest first."""
    groups: dict[tuple[str, Network, int, bool, int], list[_Transfer]] = {}
    for transfer in transfers:
        key = (transfer.kind, transfer.network, transfer.group, transfer.asynchronous, transfer.bytes)
        groups.setdefault(key, []).append(transfer)
    collectives = [
        Collective(
            kind=kind,
            network=network,
            group=group,
            asynchronous=asynchronous,
            count=sum(transfer.times for transfer in same),
            bytes=sum(transfer.times * transfer.bytes for transfer in same),
            wire_bytes=sum(transfer.times * transfer.wire_bytes for transfer in same),
            beside_cycles=sum(transfer.beside for transfer in same),
        )
        for (kind, network, group, asynchronous, _), same in groups.items()
    ]
    return tuple(sorted(collectives, key=lambda collective: -collective.bytes))


def _group_size(instruction: Instruction) -> int:
    """Returns the number of devices in each group of a collective."""
    line = instruction.line
    if match := _MESH_GROUPS.search(line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := _IOTA_GROUPS.search(line):
        return int(match[1])
    if match := _LISTED_GROUPS.search(line):
        return match[1].count(",") + 1
    return 2  # a collective-permute names pairs of source and target instead
