"""Compiled programs as text, short enough to compute their costs by hand."""

# Lines as libtpu 0.0.42 writes them, shortened: a loop of three iterations with an all-reduce and a kernel, a
# reduce-scatter in a fusion, an all-gather that two fusions advance, and a gather without an estimate. The loop's
# all-reduce was a candidate for asynchronous execution, hence its name, but found no computation to overlap with.
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


# A program on three slices: two all-reduces of one channel, an all-reduce as a pair of instructions, and an all-reduce
# between slices that two fusions overlap with.
BETWEEN_SLICES = """HloModule jit_step, is_scheduled=true

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
