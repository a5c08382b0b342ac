"""Tests the count of bytes between HBM and the core."""

import pytest

from deberta_jax.train.compile_ahead.hlo_bytes import HbmTraffic
from deberta_jax.train.compile_ahead.hlo_text import HloProgram, Instruction

from ...support.hlo_programs import IN_PLACE, PROGRAM

INDEX = 4
TABLE, ROWS, UPDATES, INDICES = 1000 * 64 * 4, 100 * 64 * 4, 16 * 64 * 4, 16 * 4


def find(name: str, text: str = IN_PLACE) -> tuple[HbmTraffic, Instruction]:
    program = HloProgram.parse(text)
    instructions = [occurrence.instruction for occurrence in program.schedule() if occurrence.enclosing is None]
    return HbmTraffic(program), next(instruction for instruction in instructions if instruction.name == name)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("rows.1", ROWS + INDEX),  # the result is in VMEM
        ("rows.2", ROWS + INDEX + ROWS // 2),  # through a fusion in the fusion; the result is bfloat16
        ("table.2", ROWS + 2 * INDEX),  # the rows come from VMEM
        ("table.3", ROWS // 2 + INDEX + ROWS),
        ("table.5", UPDATES + INDICES + 2 * UPDATES),  # a scatter reads the rows that it adds to
        ("table.6", INDICES + TABLE),
    ],
)
def test_parts_that_are_read_and_written(name: str, moved: int) -> None:
    traffic, instruction = find(name)
    assert traffic.bytes(instruction) == moved


def test_asynchronous_copy_counts_its_sides_in_hbm() -> None:
    traffic, copy = find("copy-start.1")
    assert traffic.copied_bytes(copy) == UPDATES


def test_collective_in_a_fusion_does_not_count() -> None:
    """A fusion reads an array of 4,096 bytes for a collective only, whose result is its own."""
    header = "%async_collective_fusion.1 (p: f32[64]) -> f32[512] {\n"
    text = PROGRAM.replace(header, f"{header}  %p = f32[64]{{0}} parameter(0)\n")
    traffic, fusion = find("fusion.3", text)
    assert traffic.bytes(fusion) == 0
    gather = "  ROOT %all-gather.2 = f32[512]{0} "
    beside = "  ROOT %results.1 = (f32[8]{0}, f32[512]{0}) tuple(%half.1, %all-gather.2)\n"
    text = text.replace(gather, f"  %half.1 = f32[8]{{0}} negate(%p)\n{beside}{gather[:2]}{gather[7:]}")
    traffic, fusion = find("fusion.3", text.replace("%fusion.3 = f32[512]{0}", "%fusion.3 = (f32[8]{0}, f32[512]{0})"))
    assert traffic.bytes(fusion) == 4096 + 8 * 4


def test_arrays_that_a_fusion_passes_on_do_not_count() -> None:
    """A fusion that continues a collective hands its arrays to the next one; only `%half` is written."""
    header = "%async_collective_fusion.1 (p: f32[64]) -> f32[512] {\n"
    text = PROGRAM.replace(header, f"{header}  %p = f32[64]{{0}} parameter(0)\n")
    gather = "  ROOT %all-gather.2 = f32[512]{0} "
    half = "  %v = f32[8]{0:S(1)} parameter(1)\n  %half.1 = f32[8]{0} negate(%v)\n"
    types = "(f32[8]{0}, f32[64]{0}, f32[512]{0}, f32[8]{0:S(1)})"
    results = f"  ROOT %results.1 = {types} tuple(%half.1, %p, %all-gather.2, %v)\n"
    text = text.replace(gather, f"{half}{results}{gather[:2]}{gather[7:]}")
    traffic, fusion = find("fusion.3", text.replace("%fusion.3 = f32[512]{0}", f"%fusion.3 = {types}"))
    assert traffic.bytes(fusion) == 8 * 4
