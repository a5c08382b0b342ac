"""Tests how the compiler's estimates are added up."""

from deberta_jax.train.compile_ahead.hlo_costs import read_cost

from ...support.hlo_programs import BETWEEN_SLICES, PROGRAM


def test_cycles_kernels_and_unpriced_instructions_are_added_up() -> None:
    cost = read_cost(PROGRAM, kernels={("kernel", ((4, 512), (4,))): 1000})
    assert cost.cycles == 3 * 100 + 10 + 10 + 500
    assert cost.kernel_cycles == {"kernel": 3000}
    assert cost.unpriced == {"gather": 1}
    assert cost.unpriced_bytes == 2 * 1000 * 128 * 4


def test_kernel_without_cycles_is_unpriced() -> None:
    cost = read_cost(PROGRAM, kernels={})
    assert (cost.kernel_cycles, cost.unpriced) == ({}, {"gather": 1, "pallas_call": 3})


def test_transfers_between_slices_are_not_unpriced() -> None:
    cost = read_cost(BETWEEN_SLICES, kernels={})
    assert (cost.cycles, cost.unpriced) == (11107, {})
