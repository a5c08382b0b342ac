"""Tests the reader of the compiler's schedules."""

import os
import re
from pathlib import Path

import pytest

from deberta_jax.train.compile_ahead import schedules
from deberta_jax.train.compile_ahead.schedules import Schedule, dump_schedules, parse_schedule, read_schedules

from ...support.schedules import KERNEL

# Round 0: 7 bundles up to the branch and its delay slots, 7 at the end of the loop. Rounds 1 to 6: 7, the body of 13
# without the block of the first row, which has 2, and 7. One bundle before the loop and one after it.
BUNDLES = 1 + (7 + 7) + 6 * (7 + 11 + 7) + 2 * 2 + 1


def test_bundles_are_counted_on_the_path_that_runs() -> None:
    assert parse_schedule(KERNEL) == Schedule(bundles=BUNDLES, products=6 * 1 + 2 * 2)


@pytest.mark.parametrize("delay", [1, 6])
def test_delay_slots_of_other_chips(delay: int) -> None:
    slots = "   0x99   : > {}\n" * (delay - 1) + r"   0x99   : > {} \1"
    text = re.sub(r"(?:.*\{\}\n){3}.*\{\} (/\* End region)", slots, KERNEL)
    branches = 7 + 6 + 7  # the two in the loop and the one that closes it
    assert parse_schedule(text) == Schedule(bundles=BUNDLES + (delay - 4) * branches, products=6 * 1 + 2 * 2)


# The second one is known: where the number is. The number is not.
@pytest.mark.parametrize("place", ["[smem:[%s7_s4]]", "[smem:[#allocation10 + %s33_s9]]", "[smem:[%s33_s9]]"])
def test_condition_that_depends_on_data_counts_its_block(place: str) -> None:
    unknown = KERNEL.replace("%s50_s3 = sld [smem:[#allocation28_spill]]", f"%s50_s3 = sld {place}")
    assert parse_schedule(unknown) == Schedule(bundles=BUNDLES + 4 * 2, products=6 * 3)


COUNTED_IN_A_BLOCK = """
     0   :  { %s20_s9 = smov.u32 0 }
   0x1 LB: > { %s22_s9 = sphi %s20_s9, %s33_s9 } /* Start region 31 */
   0x2   : > { %p40_p0 = scmp.lt.s32.totalorder %s7_s4, 1 }
   0x3   : > { %s33_s9 = sadd.s32 (!%p40_p0, %s22_s9), 1, %s22_s9  ;;  %9 = sbr.rel (%p40_p0) target = $region16 }
   0x4   : > {}
   0x5   : > {}
   0x6   : > {}
   0x7   : > {} /* End region 3 */
   0x8 PF: > { %p72_p3 = scmp.ge.s32.totalorder %s33_s9, 5 } /* Start/End empty region 16 */
   0x9   :  { %80 = sbr.rel (!%p72_p3) target = $region31 }
   0xa   :  {}
   0xb   :  {}
   0xc   :  {}
   0xd   :  {} /* End region 31 */
"""


def test_instructions_follow_the_branch_on_the_same_data() -> None:
    """The counter of the loop increases under a condition on data, whose block counts as executed."""
    assert parse_schedule(COUNTED_IN_A_BLOCK) == Schedule(bundles=1 + 5 * 13, products=0)


def test_loop_of_unknown_length_runs_once() -> None:
    unknown = KERNEL.replace("scmp.ge.s32.totalorder %s33_s9, 7", "scmp.ge.s32.totalorder %s33_s9, %s7_s4")
    assert parse_schedule(unknown) == Schedule(bundles=1 + 14 + 1, products=0)


@pytest.mark.parametrize(
    ("instruction", "rounds"),
    [
        ("%p72_p3 = scmp.gt.s32.totalorder %s33_s9, 3", 4),
        ("%p72_p3 = scmp.eq.s32.totalorder %s33_s9, 2", 2),
        ("%p72_p3 = scmp.lt.s32.totalorder 4294967295, %s33_s9", 1),  # -1 < 1
        ("%p72_p3 = scmp.lt.u32.totalorder %s33_s9, 4294967295", 1),
        ("%p72_p3 = pnand %p72_p3, %p40_p0", 1),  # p3 is not known yet, but p0 is false
        ("%p72_p3 = por %p40_p0, %p71_p2", 1),  # p2 is not known yet, but p0 is true
    ],
)
def test_conditions(instruction: str, rounds: int) -> None:
    text = KERNEL.replace("%p72_p3 = scmp.ge.s32.totalorder %s33_s9, 7", instruction)
    schedule = parse_schedule(text)
    assert schedule is not None
    first_rows = (rounds + 1) // 3
    assert schedule.bundles == 1 + 14 + 25 * (rounds - 1) + 2 * first_rows + 1


def test_schedule_without_branches() -> None:
    text = "     0   :  { %v1_v0 = vlaneseq.b32 }\n   0x1   :  { %2 = vmatmul.bf16.gmra.mxu3 %v1_v0 }\n"
    assert parse_schedule(text) == Schedule(bundles=2, products=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no bundles"), (KERNEL.replace("target = $region16", "target = $region99"), "jumps to the region 99")],
)
def test_schedule_of_another_form_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_schedule(text)


def test_endless_schedule_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "_MAX_BRANCHES", 1000)
    assert parse_schedule(KERNEL.replace("%s33_s9, 7", "%s33_s9, 700")) is None
    assert parse_schedule(KERNEL) is not None


def test_fusion_is_given_up_earlier_than_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel has no estimate by the compiler that could stand in for its schedule."""
    monkeypatch.setattr(schedules, "_MAX_BRANCHES_OF_FUSION", 3)
    for name in ("7-kernel.1-01-final_bundles.txt", "9-scatter_custom_fusion.2-03-final_bundles.txt"):
        (tmp_path / name).write_text(KERNEL)
    assert list(read_schedules(tmp_path)) == ["kernel.1"]


def test_files_of_instructions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("7-kernel.1-01-final_bundles.txt", "9-fusion.2-03-final_bundles.txt"):
        (tmp_path / name).write_text(KERNEL)
    for name in (
        "6-TLP-7-kernel.1-01-final_bundles.txt",
        "7-kernel.1-00-schedule-analysis_final_bundles.txt",
        "x-hlo.txt",
    ):
        (tmp_path / name).write_text("")
    assert set(read_schedules(tmp_path)) == {"kernel.1", "fusion.2"}
    assert set(read_schedules(tmp_path, prefix="kernel")) == {"kernel.1"}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_other=true")
    dump_schedules(tmp_path)
    assert os.environ["LIBTPU_INIT_ARGS"].startswith(f"--xla_other=true --xla_jf_dump_to={tmp_path} ")
