"""Counts the bytes that an instruction of a compiled program must move between HBM and the core.

An array counts once for each instruction that reads or writes it, and only if HBM holds it. Where an instruction, or
every use of an operand inside a fusion, reads a part of an array only (a slice, rows by index), that part counts. An
update in place (`dynamic-update-slice`, `scatter`) counts what it writes: the rest of the array stays where it is.
Collectives inside a fusion, which computes beside them, do not count: `hlo_collectives` has their bytes. Neither do
arrays that a fusion passes on, such as those of a collective that later fusions continue.
"""

from collections.abc import Iterator

from .hlo_collectives import COLLECTIVES
from .hlo_text import HloProgram, Instruction, arrays_in_hbm, placed_arrays, type_bytes

_READS_A_PART = ("dynamic-slice", "slice", "gather")  # of the first operand
_SAME_DATA = ("bitcast", "get-tuple-element", "reshape")
# The operand that an update in place writes into the first one. A scatter also reads what it adds to.
_UPDATE = {"dynamic-update-slice": 1, "scatter": 2}


class HbmTraffic:
    """The traffic of the instructions of one program."""

    def __init__(self, program: HloProgram) -> None:
        self._program = program
        self._by_name = {
            name: {instruction.name: instruction for instruction in instructions}
            for name, instructions in program.computations.items()
        }

    def bytes(self, instruction: Instruction) -> int:
        """Returns the bytes that one run of an instruction reads from HBM and writes to it."""
        operands = self.operands(instruction)
        read = sum(self._read(instruction, number, operand) for number, operand in enumerate(operands))
        return read + self._written(instruction)

    def copied_bytes(self, copy: Instruction) -> int:
        """Returns the bytes that an asynchronous copy or slice reads from HBM and writes to it.

        Its result is a tuple of the source, the destination and a flag, in one order or the other.
        """
        source, destination = placed_arrays(copy.type)[:2]
        size = min(type_bytes(source), type_bytes(destination))
        return size * len(arrays_in_hbm(f"{source} {destination}"))

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Returns the operands of an instruction."""
        computation = self._by_name[instruction.computation]
        return [computation[name] for name in instruction.operands if name in computation]

    def _read(self, user: Instruction, number: int, operand: Instruction) -> int:
        whole = _bytes_in_hbm(operand.type)
        if not whole or user.opcode in _SAME_DATA:
            return whole
        return int(min(whole, self._part_read(user, number)))

    def _part_read(self, user: Instruction, number: int) -> float:
        """Returns the bytes that an instruction reads of one of its operands; infinite if it reads all of it."""
        if _is_collective(user) or (user.opcode == "tuple" and user.is_root):
            return 0
        if user.opcode in _READS_A_PART and number == 0:
            return user.result_bytes
        if user.opcode in _UPDATE and number == 0:
            return self._update_bytes(user) if user.opcode == "scatter" else 0
        if user.fused:
            parameter = f" parameter({number})"
            for inner in self._program.computations.get(user.fused, ()):
                if inner.opcode == "parameter" and parameter in inner.line:
                    return sum(self._part_read(*use) for use in self._uses(inner))
        if user.opcode in _SAME_DATA and not user.is_root:
            return sum(self._part_read(*use) for use in self._uses(user))
        return float("inf")

    def _uses(self, instruction: Instruction) -> Iterator[tuple[Instruction, int]]:
        """Yields the instructions of the same computation that read a result, and as which operand."""
        for user in self._program.computations[instruction.computation]:
            for number, name in enumerate(user.operands):
                if name == instruction.name:
                    yield user, number

    def _update_bytes(self, update: Instruction) -> int:
        return self._by_name[update.computation][update.operands[_UPDATE[update.opcode]]].result_bytes

    def _written(self, instruction: Instruction) -> int:
        """Returns the bytes of the results that HBM holds; of an update in place, those of the update."""
        whole = _bytes_in_hbm(instruction.type)
        if not whole:
            return 0
        for result in self._results(instruction):
            if self._is_in_place(instruction, result) and _bytes_in_hbm(result.type):
                whole -= result.result_bytes - self._update_bytes(result)
            elif result is not instruction and (_is_collective(result) or result.opcode == "parameter"):
                whole -= _bytes_in_hbm(result.type)
        return max(whole, 0)

    def _is_in_place(self, instruction: Instruction, result: Instruction) -> bool:
        """Returns whether a result of an instruction is an array from outside of it, with a part replaced."""
        if result.opcode not in _UPDATE:
            return False
        target = self.operands(result)[0]
        while target.opcode in _SAME_DATA:
            target = self.operands(target)[0]
        return target.opcode == "parameter" or result.computation == instruction.computation

    def _results(self, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions that compute the results of an instruction, inside of fusions and tuples."""
        if instruction.fused:
            inside = self._program.computations.get(instruction.fused, ())
            return [result for inner in inside if inner.is_root for result in self._results(inner)]
        if instruction.opcode in ("tuple", "bitcast"):
            return [result for operand in self.operands(instruction) for result in self._results(operand)]
        return [instruction]


def _bytes_in_hbm(text: str) -> int:
    """Returns the bytes of the arrays of a type that HBM holds."""
    return sum(map(type_bytes, arrays_in_hbm(text)))


def _is_collective(instruction: Instruction) -> bool:
    """Returns whether an instruction is a collective, or starts or completes one."""
    opcode = instruction.opcode.removesuffix("-start").removesuffix("-done")
    return opcode in COLLECTIVES or 'custom_call_target="AsyncCollective' in instruction.line
