"""Tests how collectives are found in compiled programs, with the computation that overlaps with them."""

import re

import pytest

from deberta_jax.train.compile_ahead.hlo_collectives import Collective, reduction_bytes
from deberta_jax.train.compile_ahead.hlo_costs import read_cost

from ...support.hlo_programs import BETWEEN_SLICES, PROGRAM


def collectives(text: str, network: str) -> list[Collective]:
    return [collective for collective in read_cost(text).collectives if collective.network == network]


def test_collectives_within_a_slice() -> None:
    figures = {
        (item.kind, item.group, item.asynchronous): (item.count, item.bytes, item.wire_bytes, item.beside_cycles)
        for item in collectives(PROGRAM, "ici")
    }
    size = 3 * (256 * 4 + 256 * 2)
    assert figures == {
        ("all-reduce", 8, False): (3, size, int(size / 3 * 2 * 7 / 8) * 3, 0),
        ("reduce-scatter", 4, False): (1, 4096, 3072, 0),
        ("all-gather", 8, True): (1, 2048, 1792, 10 + 10),
    }
    assert collectives(PROGRAM, "dcn") == []
    assert reduction_bytes(collectives(PROGRAM, "ici")) == (0, size + 4096)


def test_transfers_between_slices_and_pairs_of_instructions() -> None:
    """Two all-reduces with the channel of one shard_map count as two."""
    figures = {
        (item.kind, item.network, item.group): (item.count, item.bytes, item.wire_bytes, item.beside_cycles)
        for item in read_cost(BETWEEN_SLICES).collectives
        if item.asynchronous
    }
    assert figures == {
        ("all-reduce", "ici", 4): (1, 8192, 12288, 100),
        ("all-reduce", "dcn", 3): (1, 6144, 8192, 11000),
    }
    within = collectives(BETWEEN_SLICES, "ici")
    (synchronous,) = [collective for collective in within if not collective.asynchronous]
    assert (synchronous.count, synchronous.bytes) == (2, 2 * 4096)
    assert reduction_bytes(within) == (8192, 8192 + 8192)


@pytest.mark.parametrize(
    ("transfer", "target", "expected"),
    [
        ("ALL_GATHER", '"{1,2,3}x{0:3}"', ("all-gather", 3, 3 * 6144, 2 * 6144)),
        ("ONE_TO_ONE", "{{200000->100003},{100001->200000}}", ("collective-permute", 2, 6144, 6144)),
    ],
)
def test_kinds_of_transfers_between_slices(transfer: str, target: str, expected: tuple) -> None:
    text = BETWEEN_SLICES.replace("ALL_REDUCE", transfer).replace('"{1,2,3}x{0:3}"', target)
    assert [(item.kind, item.group, item.bytes, item.wire_bytes) for item in collectives(text, "dcn")] == [expected]


def test_transfer_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot tell what send\.1 .* 'SOMETHING'"):
        read_cost(BETWEEN_SLICES.replace("ALL_REDUCE", "SOMETHING"))


def test_computation_beside_two_transfers_counts_once() -> None:
    """The second transfer starts after 1,000 of the 11,000 cycles and completes with the first."""
    lines = BETWEEN_SLICES.splitlines()
    send, recv, done = (line for line in lines if re.search(r"(send|recv|recv-done)\.1 = ", line))
    second = [
        line.replace(".1 ", ".9 ").replace("recv.1)", "recv.9)").replace("93_0", "94_0") for line in (send, recv, done)
    ]
    text = BETWEEN_SLICES.replace(recv, f"{second[0]}\n{second[1]}\n{recv}").replace(done, f"{done}\n{second[2]}")
    (collective,) = collectives(text, "dcn")
    assert (collective.count, collective.asynchronous) == (2, True)
    assert (collective.bytes, collective.beside_cycles) == (2 * 6144, 11000)
