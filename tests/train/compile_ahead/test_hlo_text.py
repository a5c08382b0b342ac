"""Tests the parser of compiled programs."""

import pytest

from deberta_jax.train.compile_ahead.hlo_text import HloProgram, type_bytes

from ...support.hlo_programs import PROGRAM


def times_by_name(text: str) -> dict[str, int]:
    return {occurrence.instruction.name: occurrence.times for occurrence in HloProgram.parse(text).schedule()}


def test_schedule_follows_loops_and_fusions() -> None:
    occurrences = list(HloProgram.parse(PROGRAM).schedule())
    names = [occurrence.instruction.name for occurrence in occurrences]
    assert names[:4] == ["x", "fusion.1", "multiply.1", "kernel.1"]
    assert "while.1" not in names
    multiply = occurrences[2]
    assert multiply.times == 3
    assert multiply.enclosing == occurrences[1].instruction
    assert multiply.instruction.estimate == 77


def test_instruction_with_parentheses_in_its_layouts() -> None:
    kernel = next(
        occurrence.instruction
        for occurrence in HloProgram.parse(PROGRAM).schedule()
        if occurrence.instruction.name == "kernel.1"
    )
    assert kernel.opcode == "custom-call"
    assert kernel.result_shapes == ((4, 512), (4,))
    assert kernel.result_bytes == 4 * 512 * 2 + 4 * 4


def test_known_trip_count_wins_over_the_condition() -> None:
    text = PROGRAM.replace("body=%body.1", 'body=%body.1, backend_config={"known_trip_count":{"n":"5"}}')
    assert times_by_name(text)["fusion.1"] == 5


def test_loop_of_unknown_length_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"how often the loop while\.1"):
        times_by_name(PROGRAM.replace("constant(3)", "add(%a, %b)"))


def test_text_without_an_entry_computation_is_an_error() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        HloProgram.parse(PROGRAM.replace("ENTRY ", ""))


def test_branches_and_calls_are_followed() -> None:
    text = """
%one.1 (p: f32[8]) -> f32[8] {
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%two.1 (p: f32[8]) -> f32[8] {
  ROOT %add.2 = f32[8]{0} add(%p, %p)
}

%inner.1 (p: f32[8]) -> f32[8] {
  ROOT %conditional.1 = f32[8]{0} conditional(%i, %p, %p), branch_computations={%one.1, %two.1}
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  ROOT %call.1 = f32[8]{0} call(%x), to_apply=%inner.1
}
"""
    assert times_by_name(text) == {"add.1": 1, "add.2": 1}


@pytest.mark.parametrize(
    ("text", "size"), [("(f32[8,128]{1,0:T(8,128)}, s32[])", 8 * 128 * 4 + 4), ("s4[16]", 8), ("token[]", 0)]
)
def test_bytes_of_types(text: str, size: int) -> None:
    assert type_bytes(text) == size
