"""Reads the schedules that the TPU compiler writes: how many bundles one run of a fusion or a kernel executes.

A TPU core issues one VLIW bundle per cycle, so the executed bundles are a lower bound of the cycles: waits for memory
are left out. The compiler writes a file for each fusion and each Pallas kernel, with all bundles in their order. This
module follows the branches of such a file from the first bundle to the last. It evaluates the few scalar instructions
that decide them (counters of loops, comparisons), so a loop counts as often as it runs, and a block that few iterations
enter counts for those only.

A condition that depends on data is not known. A block that it guards counts as executed, and a loop that it closes
counts as run once.

There is no public description of these files. The expressions below were written for libtpu 0.0.42; each has a line
that it matches. The register of a value is the end of its name: %s17_s1 is kept in s1. A loop or a branch joins values
in one register, so registers, not values, are followed.
"""

import bisect
import dataclasses
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# A bundle: its address, a label of the control flow, one ">" for each loop around it, and its instructions.
#   0x4 LB: > { %s17_s1 = sadd.s32 1, %s16_s0 /* iteration index */  ;;  %9 = sbr.rel (!%p3_p0) target = $region29 }
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+[A-Z ]*:[\s>]*\{")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# Where a region begins, in a comment on a bundle: /* Start region 31 :: Start/End empty region 32 */
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
# An instruction that may decide a branch: it writes a scalar or a predicate, or it is a branch.
#   %s17_s1 = sadd.s32 1, %s16_s0   %8 = sst [smem:[#allocation28_spill]] %s17_s1   %9 = sbr.rel (%p3_p0) target = ...
_SCALAR = re.compile(
    r"(?P<result>%[sp]\d+_[sp]\d+) = (?P<operation>\w+)(?:\.(?P<kind>[\w.]+))?(?P<operands>[^;}]*)"
    r"|\b(?P<store>sst) \[smem:\[(?P<memory>#allocation\d+_spill)\]\](?P<stored>[^;}]*)"
    r"|\b(?P<branch>sbr)\.rel(?P<jump>[^;}]*)"
)
# The condition of an instruction, with what the result is otherwise: (!%p3_p0) target = $region9   (%p3_p0, %s1_s5), 31
_CONDITION = re.compile(r"\((!?)(%p\d+_p\d+)(?:, ([^)]*))?\),?")
# What a scalar was loaded from: [smem:[#allocation28_spill]], and not [smem:[#allocation10 + %s890_s28]]
_SPILL = re.compile(r"\s*\[smem:\[#allocation\d+_spill\]\]")
_TARGET = re.compile(r"target = \$region(\d+)")
# %s17_s1, a value that waits in memory: [smem:[#allocation28_spill]], a number
_OPERAND = re.compile(r"%[sp]\d+_[sp]\d+|#allocation\d+_spill|(?<![\w#%.$\-])-?\d+(?![\w.])")
# 1795932437120374294-fusion.3-01-final_bundles.txt, where fusion.3 is the name of the instruction. The files of the
# whole program (-TLP-) and those that only count (-schedule-analysis_final_bundles.txt) are others.
_FILE = re.compile(r"\d+-(?!TLP-)(.+)-\d+-final_bundles\.txt")

_DELAYS = (1, 4, 6)  # bundles after a branch that run whether it is taken or not: of v4, v5e to v6e, and tpu7x
_MAX_BRANCHES = 500_000  # in one schedule; these take about twenty seconds
_MAX_BRANCHES_OF_FUSION = 100_000  # the compiler has an estimate of its own; scatters into large tables take millions
_WORD = (1 << 32) - 1

_Number = int | None  # None: not known before the program runs


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What one run of a fusion or a kernel executes on a core.

    Attributes:
      bundles: VLIW bundles.
      products: instructions that multiply a vector register with the matrix that a matrix unit holds.
    """

    bundles: int
    products: int


def dump_schedules(folder: Path) -> None:
    """Makes libtpu write the schedule of everything that this process compiles. Call it before libtpu is loaded."""
    flags = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
    )
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()


def read_schedules(folder: Path, *, prefix: str = "") -> dict[str, Schedule]:
    """Reads the files that the compiler has written into the folder of `dump_schedules`.

    Args:
      folder: the folder.
      prefix: reads only the schedules of instructions whose names begin with it.

    Returns:
      The schedules by the name of the instruction. The compiler writes one file for several equal fusions. Schedules
      that take too many branches to follow are left out.

    Raises:
      ValueError: a file cannot be read.
    """
    schedules = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match and match[1].startswith(prefix):
            text, fusion = path.read_text(errors="replace"), "fusion" in match[1]
            if schedule := parse_schedule(text, fusion=fusion):
                schedules[match[1]] = schedule
    return schedules


def parse_schedule(text: str, *, fusion: bool = False) -> Schedule | None:
    """Returns what one run of a schedule executes, or None if it takes too many branches to follow.

    Args:
      text: the content of a file whose name ends in "-final_bundles.txt".
      fusion: it is that of a fusion, which is given up earlier than that of a kernel.

    Raises:
      ValueError: the text has no bundles, or jumps to a region that it does not contain.
    """
    bundles: list[str] = []
    for line in text.splitlines():
        if _BUNDLE.match(line):
            bundles.append(line)
        elif bundles:  # a long comment goes over several lines
            bundles[-1] += f"\n{line}"
    if not bundles:
        raise ValueError("a schedule of the TPU compiler has no bundles: libtpu writes schedules in another form")
    products = [0]
    for bundle in bundles:
        products.append(products[-1] + bundle.count(" vmatmul."))
    bundles_run = products_run = 0
    most = _MAX_BRANCHES_OF_FUSION if fusion else _MAX_BRANCHES
    for branches, (first, end) in enumerate(_executed_ranges(bundles)):
        if branches > most:
            return None
        bundles_run += end - first
        products_run += products[end] - products[first]
    return Schedule(bundles_run, products_run)


# ---------------------------------------------------------------- the instructions that decide branches


class _Instruction(NamedTuple):
    """An instruction that decides a branch, or a branch.

    Attributes:
      result: the register or the memory that it writes; "" for a branch.
      operation: such as "sadd", and for a comparison its kind, such as "scmp.ge.s32.totalorder".
      operands: registers, memory and numbers.
      condition: the register that decides whether it takes effect, or None.
      expected: the value of that register with which it takes effect.
      target: the region that a branch jumps to.
      reads: names of all values that it depends on.
    """

    result: str
    operation: str
    operands: tuple[str | int, ...]
    condition: str | None
    expected: bool
    target: int | None
    reads: tuple[str, ...]


def _register(name: str) -> str:
    return name if name.startswith("#") else name.rpartition("_")[2]


def _parse_instruction(match: re.Match[str]) -> _Instruction:
    text = next(filter(None, match.group("operands", "stored", "jump")), "")
    condition = _CONDITION.search(text)
    names = _OPERAND.findall(_CONDITION.sub("", text))
    target = _TARGET.search(text)
    read_names = _OPERAND.findall(text)
    operation = match["operation"] or match["store"] or match["branch"]
    if operation == "scmp":
        operation += f".{match['kind']}"
    if operation == "sld" and not _SPILL.match(text):
        names = []  # data, which is not known
    return _Instruction(
        result=_register(match["result"] or match["memory"] or "_"),
        operation=operation,
        operands=tuple(_register(name) if name[0] in "%#" else int(name) for name in names),
        condition=_register(condition[2]) if condition else None,
        expected=not (condition and condition[1]),
        target=int(target[1]) if target else None,
        reads=tuple(name for name in read_names if name[0] in "%#"),
    )


def _deciding_instructions(bundles: Sequence[str]) -> dict[int, list[_Instruction]]:
    """Returns the branches, and the instructions that their conditions depend on, by the number of the bundle."""
    writers: dict[str, list[tuple[int, _Instruction]]] = {}  # name of a value or of memory -> who writes it
    branches: list[tuple[int, _Instruction]] = []
    for number, bundle in enumerate(bundles):
        for match in _SCALAR.finditer(_COMMENT.sub("", bundle)):
            instruction = _parse_instruction(match)
            if match["branch"]:
                branches.append((number, instruction))
            else:
                writers.setdefault(match["result"] or match["memory"], []).append((number, instruction))
    deciding: dict[int, list[_Instruction]] = {}
    seen: set[str] = set()
    pending = branches
    while pending:
        number, instruction = pending.pop()
        deciding.setdefault(number, []).append(instruction)
        for name in instruction.reads:
            if name not in seen:
                seen.add(name)
                pending += writers.get(name, ())
    return deciding


# ---------------------------------------------------------------- following the branches


def _executed_ranges(bundles: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields the ranges of bundles that run, in their order.

    Raises:
      ValueError: a branch jumps to a region that does not exist.
    """
    if not any("sbr." in bundle for bundle in bundles):
        yield 0, len(bundles)
        return
    regions: dict[int, int] = {}
    for number, bundle in enumerate(bundles):
        for region in _REGION.findall(bundle):
            regions.setdefault(int(region), number)
    deciding, delay = _deciding_instructions(bundles), _delay_slots(bundles)
    numbers = sorted(deciding)
    values: dict[str, _Number] = {}
    start = index = 0
    while index < len(numbers):
        number = numbers[index]
        index += 1
        region = _run_bundle(deciding[number], values)
        if region is None:
            continue
        if region not in regions:
            raise ValueError(f"a schedule of the TPU compiler jumps to the region {region}, which it does not contain")
        end = min(number + 1 + delay, len(bundles))
        while index < len(numbers) and numbers[index] < end:
            _run_bundle(deciding[numbers[index]], values)
            index += 1
        yield start, end
        start = regions[region]
        index = bisect.bisect_left(numbers, start)
    yield start, len(bundles)


def _delay_slots(bundles: Sequence[str]) -> int:
    """Returns which of `_DELAYS` the chip has: with their last slot, most branches end a region."""
    branches = [number for number, bundle in enumerate(bundles) if "sbr." in bundle]

    def ended_regions(delay: int) -> int:
        return sum("End region" in bundles[number + delay] for number in branches if number + delay < len(bundles))

    return max(_DELAYS, key=ended_regions)


def _run_bundle(instructions: Sequence[_Instruction], values: dict[str, _Number]) -> int | None:
    """Runs the instructions of a bundle, which all read before any writes. Returns the region that it jumps to."""
    written: dict[str, _Number] = {}
    region = None
    for instruction in instructions:
        # A branch on data is not taken. Instructions that depend on the same condition then run accordingly.
        if instruction.operation == "sbr" and instruction.condition and values.get(instruction.condition) is None:
            values[instruction.condition] = int(not instruction.expected)
    for instruction in instructions:
        condition = values.get(instruction.condition) if instruction.condition else int(instruction.expected)
        if instruction.operation == "sbr":
            if bool(condition) == instruction.expected:
                region = instruction.target
        elif instruction.operation == "sphi":
            pass  # all its operands are in the register of its result
        elif condition is None:
            written[instruction.result] = None
        elif bool(condition) == instruction.expected:
            operands = [values.get(name) if isinstance(name, str) else name for name in instruction.operands]
            written[instruction.result] = _evaluate(instruction.operation, operands)
    values |= written
    return region


def _signed(number: int) -> int:
    return (number & _WORD) - ((number & (1 << 31)) << 1)


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "sadd": operator.add,
    "ssub": operator.sub,
    "smul": operator.mul,
    "sand": operator.and_,
    "sor": operator.or_,
    "sxor": operator.xor,
    "sshll": lambda number, bits: number << (bits & 31),
    "sshrl": lambda number, bits: (number & _WORD) >> (bits & 31),
    "sshra": lambda number, bits: _signed(number) >> (bits & 31),
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def _evaluate(operation: str, operands: Sequence[_Number]) -> _Number:
    """Returns the result of an instruction, or None if it is not known."""
    name, _, kind = operation.partition(".")
    result: _Number = None
    match name, operands:
        case (("smov" | "sld" | "sst" | "pmov"), [operand]):
            result = operand
        case "scalar_select", [int() as condition, if_true, if_false]:
            result = if_true if condition else if_false
        case "pneg", [int() as operand]:
            result = int(not operand)
        case (("pand" | "pnand"), [first, second]) if 0 in (first, second) or None not in (first, second):
            result = int(bool(first and second) == (name == "pand"))
        case "por", [first, second] if first or second or None not in (first, second):
            result = int(bool(first or second))
        case "scmp", [int() as first, int() as second]:
            comparison, _, number_type = kind.partition(".")
            convert = _signed if number_type.startswith("s32") else _WORD.__and__
            result = int(_COMPARISONS[comparison](convert(first), convert(second)))
        case _, [int() as first, int() as second] if name in _ARITHMETIC:
            result = _ARITHMETIC[name](first, second) & _WORD
    return result
