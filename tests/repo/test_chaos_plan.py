"""What `make chaos` injects: every fault in the default 20 rounds."""

import random

from ..chaos.faults import FAULTS, LAST, plan


def test_twenty_rounds_have_every_fault() -> None:
    faults = plan(20, random.Random(0), small_disk=True)
    assert len(faults) == 20
    assert {fault.name for fault in faults} == {fault.name for fault in (*FAULTS, LAST)}
    assert faults[-1] is LAST


def test_full_disks_are_left_out_where_mounting_is_not_allowed() -> None:
    faults = plan(40, random.Random(0), small_disk=False)
    assert len(faults) == 40
    assert set(faults) == {*(fault for fault in FAULTS if not fault.fills_disk), LAST}


def test_one_round_trains_to_the_end() -> None:
    assert plan(1, random.Random(0), small_disk=True) == [LAST]
