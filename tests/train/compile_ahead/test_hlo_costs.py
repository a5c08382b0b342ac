"""What is read out of a compiled program: cycles, kernels, collectives and what runs beside them."""

import re

import pytest

from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.report import reductions

from ...support.hlo_programs import BETWEEN, NO_MEMORY, PROGRAM


def test_a_program_is_added_up() -> None:
    cost = read_cost(PROGRAM, kernels={("kernel", ((4, 512), (4,))): 1000}, **NO_MEMORY)
    assert cost.cycles == 3 * 100 + 10 + 10 + 500
    assert cost.kernel_cycles == {"kernel": 3000}
    assert cost.unpriced == {"gather": 1}
    assert cost.unpriced_bytes == 2 * 1000 * 128 * 4
    assert {one.network for one in cost.collectives} == {"ici"}
    found = {
        (one.kind, one.group, one.asynchronous): (one.count, one.bytes, one.wire_bytes, one.beside_cycles)
        for one in cost.collectives
    }
    size = 3 * (256 * 4 + 256 * 2)
    assert found == {
        ("all-reduce", 8, False): (3, size, int(size / 3 * 2 * 7 / 8) * 3, 0),
        ("reduce-scatter", 4, False): (1, 4096, 3072, 0),
        ("all-gather", 8, True): (1, 2048, 1792, 10 + 10),
    }
    assert reductions(cost) == (0, size + 4096)


def test_transfers_between_slices_and_pairs_are_told_apart() -> None:
    """Two all-reduces of one channel, as shard_map names them, are two."""
    cost = read_cost(BETWEEN, kernels={}, **NO_MEMORY)
    assert (cost.cycles, cost.unpriced) == (11107, {})
    found = {
        (one.kind, one.network, one.group): (one.count, one.bytes, one.wire_bytes, one.beside_cycles)
        for one in cost.collectives
        if one.asynchronous
    }
    assert found == {
        ("all-reduce", "ici", 4): (1, 8192, 12288, 100),
        ("all-reduce", "dcn", 3): (1, 6144, 8192, 11000),
    }
    (alone,) = [one for one in cost.collectives if not one.asynchronous]
    assert (alone.count, alone.bytes, alone.network) == (2, 2 * 4096, "ici")
    assert reductions(cost) == (8192, 8192 + 8192)


@pytest.mark.parametrize(
    ("transfer", "target", "expected"),
    [
        ("ALL_GATHER", '"{1,2,3}x{0:3}"', ("all-gather", 3, 3 * 6144, 2 * 6144)),
        ("ONE_TO_ONE", "{{200000->100003},{100001->200000}}", ("collective-permute", 2, 6144, 6144)),
    ],
)
def test_other_transfers_between_slices(transfer: str, target: str, expected: tuple) -> None:
    text = BETWEEN.replace("ALL_REDUCE", transfer).replace('"{1,2,3}x{0:3}"', target)
    found = [one for one in read_cost(text, kernels={}, **NO_MEMORY).collectives if one.network == "dcn"]
    assert [(one.kind, one.group, one.bytes, one.wire_bytes) for one in found] == [expected]


def test_an_unknown_transfer_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot tell what send\.1 .* 'SOMETHING'"):
        read_cost(BETWEEN.replace("ALL_REDUCE", "SOMETHING"), kernels={}, **NO_MEMORY)


def test_computation_beside_two_transfers_counts_once() -> None:
    """The second is sent after 1,000 of the 11,000 cycles and ends with the first."""
    pair = [line for line in BETWEEN.splitlines() if re.search("(send|recv|recv-done).1 = ", line)]
    second = [line.replace(".1 ", ".9 ").replace("recv.1)", "recv.9)").replace("93_0", "94_0") for line in pair]
    text = BETWEEN.replace(pair[1], f"{second[0]}\n{second[1]}\n{pair[1]}").replace(pair[2], f"{pair[2]}\n{second[2]}")
    (found,) = [one for one in read_cost(text, kernels={}, **NO_MEMORY).collectives if one.network == "dcn"]
    assert (found.count, found.asynchronous, found.bytes, found.beside_cycles) == (2, True, 2 * 6144, 11000)
