"""Tests how tests/benchmarks/keras_hub.py prices a gather from the schedule that the TPU compiler writes."""

from pathlib import Path

import pytest

from ..benchmarks.keras_hub import SCORES, GatherSchedule, read_gather_schedules, score_gathers

# As libtpu 0.0.42 writes it for v5e, shortened: 3 trips of 4 indices, in chunks of 2. One block of 5 bundles fetches a
# chunk (four of them are in the delay of the branch), one of 4 picks the elements out, and a last block copies results.
SCHEDULE = """= control target key start
LB: loop body
= control target key end

     0   :  { %s0 = inlined_call_operand.vmem [shape: bf16[8,12,512,512], index: 0, kind: input] /* operand 0 */ }
   0x1 LB: > { %14 = sst [smem:[#allocation13_spill]] %s12 }
   0x2   : > { %15 = dma.hbm_to_smem (%p11), /*hbm=*/%s33, /*size_in_granules=*/16, /*smem=*/%s27 /*
base_bounds: (3)
window_bounds: (1)
iteration_bounds: (3)
element_size_in_bytes: 16
second_minor_factor: 1 */ } /* End region 17 */
   0x3 LB: >> { %s14 = sld [smem:[#allocation13_spill]]  ;;  %s4 = sphi %s5, %s6 }
   0x4   : >> { %125 = sbr.rel (%p10) target = $region36 }
   0x5   : >> { %s25 = sld [smem:[%s22 + %s10]] (!%p10) }
   0x6   : >> { %s26 = sld [smem:[%s27 + %s28]]  ;;  %s29 = sld [smem:[#allocation13_spill]] }
   0x7   :  {}
   0x8   : >> { %v1 = vld [vmem:[%s25] sm:$0xf]  ;;  %v2 = vld [vmem:[%s26] sm:$0xf] }
   0x9   : >> { %16 = vst [vmem:[#allocation3] sm:$0xf] /*vst_source=*/%v1 }
   0xa PF: >> { %s30 = sld [smem:[%s22]]  ;;  %s31 = sld [smem:[%s27]] }
   0xb   : >> { %v3 = vperm.xlu0 %v1 }
   0xc   : >> { %17 = vst [vmem:[#allocation4]] %v3 }
   0xd   : >> { %18 = sbr.rel (!%p12) target = $region44 }
   0xe   : >> { %19 = dma.vmem_to_hbm [thread:$0]  /*vmem=*/%s22, /*hbm=*/%s33 }
   0xf PF: > { %p8 = scmp.ge.s32.totalorder %s11, 4 /* loop exit test */ }
"""

PROGRAM = """HloModule jit_forward, is_scheduled=true

%inside.1 (p.1: bf16[8,12,512,512], p.2: s32[25165824]) -> bf16[25165824] {
  %p.1 = bf16[8,12,512,512]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.9 = bf16[8,12,512,512]{3,2,1,0:T(8,128)(2,1)} gather(%p.1, %p.2), offset_dims={}, slice_sizes={1,1,1,1}
  ROOT %reshape.1 = bf16[25165824]{0:T(1024)(128)(2,1)} reshape(%gather.9)
}

%inside.2 (p.3: bf16[128100,768], p.4: s32[4096]) -> bf16[4096,768] {
  ROOT %gather.8 = bf16[4096,768]{1,0:T(8,128)(2,1)} gather(%p.3, %p.4), offset_dims={1}, slice_sizes={1,768}
}

ENTRY %main.1 (x: bf16[128100,768]) -> bf16[25165824] {
  %x = bf16[128100,768]{1,0} parameter(0)
  %gather_fusion = bf16[4096,768]{1,0} fusion(%x, %ids), kind=kCustom, calls=%inside.2
  %fusion.7 = bf16[8,12,512,512]{3,2,1,0:T(8,128)(2,1)S(1)} fusion(%gather_fusion), kind=kOutput, calls=%scores
  %bitcast.3 = s32[25165824]{0:T(1024)} bitcast(%rows)
  ROOT %gather_fusion.1 = bf16[25165824]{0:T(1024)} fusion(%fusion.7, %bitcast.3), kind=kCustom, calls=%inside.1
}
"""


def test_gather_is_priced_from_its_schedule() -> None:
    schedule = GatherSchedule.read(SCHEDULE)
    assert schedule == GatherSchedule(trips=3, indices=4, chunk=2, bundles=5 + 4)
    assert schedule.cycles == 3 * 2 * 9


@pytest.mark.parametrize(
    ("change", "message"), [(("to_smem", "to_vmem"), "no loop"), (("bytes: 16", "bytes: 12"), "3")]
)
def test_schedule_of_another_structure_is_an_error(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatherSchedule.read(SCHEDULE.replace(*change))


def test_only_gathers_as_large_as_the_scores_count() -> None:
    assert SCORES == 25165824
    assert score_gathers(PROGRAM) == {
        "gather_fusion.1": (
            "bf16[25165824]{0:T(1024)}",
            "bf16[8,12,512,512]{3,2,1,0:T(8,128)(2,1)S(1)}",
            "s32[25165824]{0:T(1024)}",
        )
    }


def test_schedule_is_shared_by_equal_gathers_only(tmp_path: Path) -> None:
    (tmp_path / "179-gather_fusion.1-01-final_bundles.txt").write_text(SCHEDULE)
    (tmp_path / "179-gather_fusion.1-00-schedule-analysis_final_bundles.txt").write_text("Schedule analysis:")
    schedules = read_gather_schedules({"gather_fusion.1": ("f32[8]",), "gather_fusion.2": ("f32[8]",)}, tmp_path)
    assert [schedule.cycles for schedule in schedules.values()] == [54, 54]
    with pytest.raises(ValueError, match=r"no schedule of 1 gathers, such as gather_fusion\.2"):
        read_gather_schedules({"gather_fusion.1": ("f32[8]",), "gather_fusion.2": ("f32[8]{S(1)}",)}, tmp_path)
