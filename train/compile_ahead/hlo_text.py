"""Parses the text of an optimized HLO program, as `compiled.as_text()` returns it from the TPU compiler.

There is no public API that lists the instructions of a compiled TPU program with the compiler's cycle estimates, so the
text is read with regular expressions. They were written for the text of libtpu 0.0.42 under jax 0.10.2; every
expression below has a line that it matches. The text is not a stable format, so this is what happens to a line that no
expression knows:

* A line inside a computation that is not an instruction (a brace, a table of file names) is skipped.
* An instruction with an unknown opcode is kept. `hlo_costs.read_cost` lists it as unpriced unless it has an estimate or
  its result is small, so a new kind of work shows up in the report.
* A program without an entry computation and a loop without a known trip count raise ValueError: every figure that
  depends on them would be wrong.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

Shapes = tuple[tuple[int, ...], ...]

# The first line of a computation, at the start of the line:
#   %fused_computation.3 (param_0.1: f32[8,128]) -> f32[8,128] {
#   ENTRY %main.1 (x: f32[8,128]) -> f32[8,128] {
_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
# An instruction, indented: name, type of its result, opcode. The type is matched lazily up to the first bracket that is
# followed by a word and an opening parenthesis, because layouts contain parentheses as well.
#   %fusion.1 = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%inside.1, backend_config={...}
#   ROOT %tuple.1 = (s32[], f32[4]{0}) tuple(%next, %y)
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (.*?[\]})]) ([a-z][a-z0-9\-]*)\(")
# An operand: fusion(%x, %copy-done.48)
_NAME = re.compile(r"%([\w.\-]+)")
# Computations that an instruction runs, one or a list in braces:
#   calls=%inside.1   body=%body.1   branch_computations={%branch_0.1, %branch_1.2}
_CALLED = re.compile(r"(?:calls|body|branch_computations|true_computation|false_computation)=(\{[^}]*\}|\S+)")
# The same for the opcode `call`. Elsewhere, to_apply names the scalar function of a reduction, which costs nothing.
#   %call.1 = f32[8]{0} call(%x), to_apply=%inner.1
_TO_APPLY = re.compile(r"to_apply=%?([^,\s]+)")
# Trip count of a loop, in its backend_config: "known_trip_count":{"n":"12"}
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Without one: condition=%condition.1, a computation that compares the counter with its only integer constant
#   %constant.1 = s32[]{:T(128)} constant(3)
_CONDITION = re.compile(r"condition=%?([^,\s]+)")
_INTEGER_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
# The compiler's estimate, in backend_config: "estimated_cycles":"100"
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
# One array in a type: bf16[8,512]{1,0:T(8,128)(2,1)}, s32[]. Tokens and opaque types match nothing and take no bytes.
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
# The same with its layout. S(1) in the layout: the array is in VMEM. Without an S it is in HBM.
_PLACED_ARRAY = re.compile(r"\b[a-z]+\d*\[[\d,]*\](?:\{[^}]*\})?")

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64} | {
    f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program.

    Attributes:
      name: its name without the percent sign.
      type: the type of its result as text, with shapes and layouts.
      opcode: such as "fusion" or "all-reduce-start".
      line: the whole line, from which attributes are read.
      computation: the name of the computation that contains it.
    """

    name: str
    type: str
    opcode: str
    line: str
    computation: str

    @property
    def estimate(self) -> int:
        """The compiler's estimate of its cycles; 0 if it gives none."""
        match = _ESTIMATE.search(self.line)
        return int(match[1]) if match else 0

    @property
    def result_bytes(self) -> int:
        return type_bytes(self.type)

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of its operands: "fusion(%x, %y), kind=kLoop" -> ("x", "y")."""
        start = self.line.index(f" {self.opcode}(") + len(self.opcode) + 2
        return tuple(_NAME.findall(self.line[start : self.line.index(")", start)]))

    @property
    def is_root(self) -> bool:
        """Whether its result is the result of its computation."""
        return self.line.lstrip().startswith("ROOT ")

    @property
    def fused(self) -> str | None:
        """The name of the computation that a fusion runs; None for any other instruction."""
        called = _called(self) if self.opcode == "fusion" else []
        return called[0] if called else None

    @property
    def result_shapes(self) -> Shapes:
        """The shapes of the result: "(f32[8,128]{1,0:T(8,128)}, s32[])" -> ((8, 128), ())."""
        return tuple(_dimensions(sizes) for _, sizes in _ARRAY.findall(self.type))


@dataclasses.dataclass(frozen=True)
class Occurrence:
    """An instruction at its place in the schedule.

    Attributes:
      times: how often one run of the program executes it.
      enclosing: the outermost fusion or call of a computation that contains it, whose estimate covers it; None for an
        instruction of the schedule itself.
    """

    instruction: Instruction
    times: int
    enclosing: Instruction | None


class HloProgram:
    """The computations of a program by name, and the one that the program starts with."""

    def __init__(self, computations: dict[str, list[Instruction]], entry: str) -> None:
        self.computations = computations
        self.entry = entry

    @classmethod
    def parse(cls, text: str) -> "HloProgram":
        """Parses the text of a program.

        Raises:
          ValueError: the text has no entry computation.
        """
        computations: dict[str, list[Instruction]] = {}
        name = entry = ""
        for line in text.splitlines():
            if line and not line[0].isspace():
                if header := _COMPUTATION.match(line):
                    name = header[2]
                    computations[name] = []
                    entry = name if header[1] else entry
            elif name and (match := _INSTRUCTION.match(line)):
                computations[name].append(Instruction(match[1], match[2], match[3], line, name))
        if not entry:
            raise ValueError("the compiled program has no ENTRY computation: libtpu writes its text in another form")
        return cls(computations, entry)

    def schedule(self) -> Iterator[Occurrence]:
        """Yields every instruction in the order in which it runs.

        The text of a scheduled program lists instructions in their order of execution. The instructions of a fusion
        follow the fusion. Loops, conditionals and calls are replaced by their contents: their own estimates, if any,
        would count the contents twice. Every branch of a conditional is included.
        """
        yield from self._schedule(self.entry, 1, None)

    def _schedule(self, name: str, times: int, enclosing: Instruction | None) -> Iterator[Occurrence]:
        for instruction in self.computations.get(name, ()):
            called = _called(instruction)
            if instruction.opcode in ("while", "conditional", "call"):
                trips = times * (self._trip_count(instruction) if instruction.opcode == "while" else 1)
                for inner in called:
                    yield from self._schedule(inner, trips, enclosing)
            else:
                yield Occurrence(instruction, times, enclosing)
                for inner in called:
                    yield from self._schedule(inner, times, enclosing or instruction)

    def _trip_count(self, loop: Instruction) -> int:
        """Returns how often a loop runs.

        JAX's loops count from 0 to a constant, so the only constant of the condition is the trip count.

        Raises:
          ValueError: the loop has another form.
        """
        if known := _TRIP_COUNT.search(loop.line):
            return int(known[1])
        condition = _CONDITION.search(loop.line)
        instructions = self.computations.get(condition[1] if condition else "", ())
        matches = [_INTEGER_CONSTANT.search(instruction.line) for instruction in instructions]
        constants = [match[1] for match in matches if match]
        if len(constants) != 1:
            raise ValueError(f"cannot tell how often the loop {loop.name} of the compiled program runs")
        return int(constants[0])


def type_bytes(text: str) -> int:
    """Returns the bytes of the arrays in a type such as "(f32[8,128]{1,0}, s32[])"; layouts add no padding here."""
    arrays = _ARRAY.findall(text)
    return sum(_BITS.get(kind, 0) * math.prod(_dimensions(sizes)) for kind, sizes in arrays) // 8


def placed_arrays(text: str) -> list[str]:
    """Returns the arrays of a type with their layouts, which say where they are."""
    return _PLACED_ARRAY.findall(text)


def arrays_in_hbm(text: str) -> list[str]:
    """Returns the arrays of a type that HBM holds, with their layouts."""
    return [array for array in placed_arrays(text) if "S(" not in array]


def _dimensions(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _called(instruction: Instruction) -> list[str]:
    """Returns the names of the computations that an instruction runs."""
    groups = _CALLED.findall(instruction.line)
    names = [name.strip("%, ") for group in groups for name in group.strip("{},").split(",")]
    if instruction.opcode == "call":
        names += _TO_APPLY.findall(instruction.line)
    return names
