"""Tests the conversion of cycles and bytes into times."""

import dataclasses

import pytest

from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.schedules import Schedule
from deberta_jax.train.compile_ahead.timing import Hardware, Timing
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS

from ...support.compile_reports import EIGHT_CHIPS, WORKLOAD
from ...support.hlo_programs import BETWEEN_SLICES, PROGRAM


def test_times_and_bill_of_one_slice() -> None:
    cost = read_cost(PROGRAM, schedules={"kernel.1": Schedule(bundles=1000, products=0)})
    timing = Timing.estimate(cost, EIGHT_CHIPS, WORKLOAD)
    assert timing.compute_seconds == pytest.approx(3820 / 1.5e9)
    assert timing.unpriced_seconds == pytest.approx(cost.unpriced_bytes / 0.82e12)
    wire_bytes = {(item.kind, item.group): item.wire_bytes for item in cost.collectives}
    gather = wire_bytes["all-gather", 8] / (2 * 90e9)  # the whole slice, so both axes of the torus
    assert gather < 20 / 1.5e9  # computation hides it entirely
    waiting = wire_bytes["all-reduce", 8] / (2 * 90e9) + wire_bytes["reduce-scatter", 4] / 90e9
    assert timing.collective_seconds == pytest.approx(waiting)
    assert timing.hidden_seconds == pytest.approx(gather)
    assert timing.network_seconds == 0
    assert timing.step_seconds == timing.compute_seconds + timing.unpriced_seconds + timing.collective_seconds
    assert timing.chip_hours == pytest.approx(1e6 * timing.step_seconds / 3600 * 8)
    assert timing.days * 24 * 8 == pytest.approx(timing.chip_hours)
    assert timing.mfu == pytest.approx(1e9 / (timing.step_seconds * 8 * 197e12))
    assert timing.mfu_without_relative == pytest.approx(0.9 * timing.mfu)
    assert timing.bound is None


def test_time_of_the_bound() -> None:
    schedules = {"kernel.1": Schedule(bundles=1000, products=300)}
    cost = read_cost(PROGRAM, schedules=schedules, peaks=CHIPS["v5e"].peaks)
    timing = Timing.estimate(cost, EIGHT_CHIPS, WORKLOAD)
    assert cost.bound is not None
    assert timing.bound is not None
    # 16 rows for four matrix units, each of which takes one a cycle; the published peak is rounded.
    assert cost.bound.matrix_cycles == pytest.approx(3 * 300 * 4, rel=0.003)
    assert timing.bound.step_seconds == pytest.approx(cost.bound.cycles / 1.5e9 + timing.collective_seconds)
    assert timing.bound.mfu == pytest.approx(1e9 / (timing.bound.step_seconds * 8 * 197e12))
    assert timing.bound.mfu_without_relative == pytest.approx(0.9 * timing.bound.mfu)


def test_transfers_between_slices_take_the_time_of_the_network() -> None:
    hardware = Hardware(chip=CHIPS["v5e"], torus_axes=2, devices=12, slices=3)
    timing = Timing.estimate(read_cost(BETWEEN_SLICES), hardware, WORKLOAD)
    network, pair, synchronous = 8192 / 3.125e9, 12288 / 180e9, 12288 / 180e9
    hidden = min(network, 11000 / 1.5e9) + min(pair, 100 / 1.5e9)
    assert timing.network_seconds == pytest.approx(network)
    assert timing.hidden_seconds == pytest.approx(hidden)
    assert timing.collective_seconds == pytest.approx(network + pair + synchronous - hidden)


def test_transfers_between_slices_of_a_chip_without_a_network_speed() -> None:
    hardware = dataclasses.replace(EIGHT_CHIPS, chip=CHIPS["v4"])
    with pytest.raises(ValueError, match="is not published"):
        Timing.estimate(read_cost(BETWEEN_SLICES), hardware, WORKLOAD)
