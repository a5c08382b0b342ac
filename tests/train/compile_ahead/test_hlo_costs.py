"""Tests how the compiler's figures are added up, and the bound beside them."""

import dataclasses

from deberta_jax.train.compile_ahead.hlo_costs import Bound, Peaks, read_cost
from deberta_jax.train.compile_ahead.schedules import Schedule

from ...support.hlo_programs import BETWEEN_SLICES, IN_PLACE, PROGRAM

PEAKS = Peaks(bytes_per_cycle=100.0, cycles_per_product=4.0)
KERNEL = {"kernel.1": Schedule(bundles=1000, products=0)}


def test_cycles_kernels_and_unpriced_instructions_are_added_up() -> None:
    cost = read_cost(PROGRAM, schedules=KERNEL)
    assert cost.cycles == 3 * 100 + 10 + 10 + 500
    assert cost.kernel_cycles == {"kernel": 3000}
    assert cost.unpriced == {"gather": 1}
    assert cost.unpriced_bytes == (8 * 128 + 1000 * 128) * 4
    assert cost.bound is None


def test_kernel_without_a_schedule_is_unpriced() -> None:
    cost = read_cost(PROGRAM)
    assert (cost.kernel_cycles, cost.unpriced) == ({}, {"gather": 1, "pallas_call": 3})


def test_transfers_between_slices_are_not_unpriced() -> None:
    cost = read_cost(BETWEEN_SLICES)
    assert (cost.cycles, cost.unpriced) == (11107, {})


def test_updates_in_place_are_priced_by_their_updates() -> None:
    """The whole tables would be 22 times 512,000 bytes."""
    cost = read_cost(IN_PLACE)
    assert cost.unpriced == {"dynamic-update-slice": 10, "fusion": 10, "scatter-add": 2}
    # test_hlo_bytes has the bytes of each.
    assert cost.unpriced_bytes == 10 * (25_600 + 8) + 10 * (12_800 + 4 + 25_600) + (64 + 3 * 4096) + (64 + 256_000)


def test_bound_takes_the_largest_of_bundles_products_and_bytes() -> None:
    schedules = {
        "rows.1": Schedule(bundles=300, products=70),  # 280 cycles of the matrix units; 25,604 bytes take 256.04
        "rows.2": Schedule(bundles=300, products=100),  # 400; 38,404 bytes take 384.04
        "table.3": Schedule(bundles=300, products=10),  # 38,404 bytes take 384.04
    }
    bound = read_cost(IN_PLACE, schedules=schedules, peaks=PEAKS).bound
    unscheduled = 10 * 256.08 + 123.52 + 2560.64  # table.2, table.5 and table.6 by their bytes
    moved = 10 * (25_604 + 38_404 + 25_608 + 38_404) + 12_352 + 256_064 + 4096  # with the asynchronous copy
    assert bound == Bound(
        cycles=round(10 * (300 + 400 + 384.04) + unscheduled),
        bundle_cycles=10 * 900,
        matrix_cycles=10 * 180 * 4,
        hbm_cycles=round(moved / 100),
        hbm_bytes=moved,
        unscheduled_cycles=round(unscheduled),
    )


def test_instruction_without_a_schedule_counts_with_its_estimate() -> None:
    peaks = dataclasses.replace(PEAKS, bytes_per_cycle=1e9)
    bound = read_cost(PROGRAM, schedules=KERNEL, peaks=peaks).bound
    assert bound is not None
    assert (bound.cycles, bound.unscheduled_cycles) == (3000 + 820, 820)


def test_equal_fusions_share_a_schedule() -> None:
    """The two fusions of this program have the same body, but results of different shapes in different memories."""
    second = "  %fusion.7 = f32[512]{0} fusion(%x), kind=kLoop, calls=%inside.1\n"
    other = "  %fusion.8 = f32[512]{0:S(1)} fusion(%x), kind=kLoop, calls=%inside.1\n"
    text = PROGRAM.replace("  %fusion.4 = ", f"{second}{other}  %fusion.4 = ")
    peaks = dataclasses.replace(PEAKS, bytes_per_cycle=1e9)
    bound = read_cost(text, schedules={"fusion.6": Schedule(bundles=70, products=0)}, peaks=peaks).bound
    assert bound is not None
    assert bound.bundle_cycles == 2 * 70
