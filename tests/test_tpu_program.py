"""What is read out of a compiled program: cycles, kernels, collectives and what runs beside them."""

import re

import pytest
from deberta_jax.train.compile_report import reductions
from deberta_jax.train.tpu_program import read_cost

NO_MEMORY = {"argument_bytes": 0, "temporary_bytes": 0, "program_bytes": 0, "peak_bytes": 0}

# Lines as libtpu 0.0.42 writes them, shortened: a loop of 3 with an all-reduce and a kernel, a reduce-scatter in a
# fusion, an all-gather that two fusions carry on, a gather without an estimate. The loop's all-reduce was to be
# asynchronous, as its name says, and found nothing to run beside.
PROGRAM = """HloModule jit_step, is_scheduled=true

%condition.1 (state: (s32[])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  %element.1 = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%element.1, %constant.1), direction=LT
}

%body.1 (state: (s32[])) -> (s32[]) {
  %fusion.1 = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%inside.1, backend_config={"window_config":{"estimated_cycles":"100"}}
  %kernel.1 = (bf16[4,512]{1,0:T(8,128)}, f32[4]{0}) custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/kernel/pallas_call" stack_frame_id=1}
  %all-reduce.1 = (f32[256]{0:T(128)}, /*index=1*/bf16[128,2]{1,0}) all-reduce(%x, %y), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, to_apply=%add, frontend_attributes={async_collective_name="all-reduce-start.1"}
  ROOT %tuple.1 = (s32[]) tuple(%next)
}

%inside.1 (p: f32[8,128]) -> f32[8,128] {
  ROOT %multiply.1 = f32[8,128]{1,0:T(8,128)} multiply(%p, %p), backend_config={"estimated_cycles":"77"}
}

%all-reduce-scatter.1 (p: f32[1024]) -> f32[256] {
  %all-reduce.2 = f32[1024]{0} all-reduce(%p), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[256]{0} dynamic-slice(%all-reduce.2, %i), dynamic_slice_sizes={256}
}

%start.1 (p: f32[64]) -> (f32[64], f32[512], u32[]) {
  %all-gather.1 = f32[512]{0} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.1 = (f32[64]{0}, f32[512]{0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: f32[64]) -> f32[512] {
  ROOT %all-gather.2 = f32[512]{0} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
}

%async_collective_fusion.2 (p: f32[64]) -> f32[512] {
  ROOT %all-gather.3 = f32[512]{0} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
}

%done.1 (p: f32[64]) -> f32[512] {
  %all-gather.4 = f32[512]{0} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.2 = f32[4096]{0} custom-call(%all-gather.4), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main.1 (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %while.1 = (s32[]) while(%x), condition=%condition.1, body=%body.1
  %fusion.2 = f32[256]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %async-collective-start = (f32[64]{0}, f32[512]{0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start.1
  %fusion.3 = f32[512]{0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"10"}
  %fusion.6 = f32[512]{0} fusion(%x), kind=kLoop, calls=%inside.1, backend_config={"estimated_cycles":"500"}
  %fusion.4 = f32[512]{0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2, backend_config={"estimated_cycles":"10"}
  %async-collective-done = f32[4096]{0} fusion(%x), kind=kCustom, calls=%done.1
  ROOT %fusion.5 = f32[1000,128]{1,0} fusion(%x), kind=kCustom, calls=%inside.1, metadata={op_name="jit(step)/gather" stack_frame_id=2}
}
"""  # noqa: E501


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


BETWEEN = """HloModule jit_step, is_scheduled=true

%inside.1 (p: f32[8,128]) -> f32[8,128] {
  ROOT %multiply.1 = f32[8,128]{1,0:T(8,128)} multiply(%p, %p)
}

ENTRY %main.1 (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %after-all.1 = token[] after-all()
  %all-reduce.1 = f32[1024]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %all-reduce.2 = f32[1024]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %all-reduce-start.1 = f32[2048]{0} all-reduce-start(%x), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%add
  %fusion.1 = f32[8,128]{1,0} fusion(%x), kind=kLoop, calls=%inside.1, backend_config={"estimated_cycles":"100"}
  %all-reduce-done.1 = f32[2048]{0} all-reduce-done(%all-reduce-start.1)
  %send.1 = (bf16[3,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %after-all.1), channel_id=16, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.93_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %fusion.2 = f32[8,128]{1,0} fusion(%x), kind=kLoop, calls=%inside.1, backend_config={"estimated_cycles":"1000"}
  %send-done.1 = token[] send-done(%send.1), channel_id=16, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv.1 = (bf16[3,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after-all.1), channel_id=15, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.93_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %fusion.3 = f32[8,128]{1,0} fusion(%x), kind=kLoop, calls=%inside.1, backend_config={"estimated_cycles":"10000"}
  %recv-done.1 = (bf16[3,8,128]{2,1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.1), channel_id=15, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %fusion.4 = f32[8,128]{1,0} fusion(%x), kind=kLoop, calls=%inside.1, backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


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
