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


# A program that changes parts of a table of 1,000 rows of 64 numbers (256,000 bytes), which HBM holds: a loop of ten
# iterations writes 100 rows each in place, as an instruction and as the root of a fusion, and reads 100 rows; a scatter
# adds 16 rows. A last fusion fills a new table before it adds rows, so that it writes all of it. VMEM, S(1), holds
# some of the rows.
IN_PLACE = """HloModule jit_step, is_scheduled=true

%body.1 (state: (s32[], f32[1000,64])) -> (s32[], f32[1000,64]) {
  %state = (s32[]{:T(128)}, f32[1000,64]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %table.1 = f32[1000,64]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %rows.1 = f32[100,64]{1,0:T(8,128)S(1)} fusion(%table.1, %i), kind=kLoop, calls=%read.1, backend_config={"estimated_cycles":"30"}
  %rows.2 = bf16[100,64]{1,0:T(8,128)(2,1)} fusion(%table.1, %i), kind=kLoop, calls=%read.2, backend_config={"estimated_cycles":"40"}
  %table.2 = f32[1000,64]{1,0:T(8,128)} dynamic-update-slice(%table.1, %rows.1, %i, %i)
  %table.3 = f32[1000,64]{1,0:T(8,128)} fusion(%table.2, %rows.2, %i), kind=kLoop, calls=%update.1, metadata={op_name="jit(step)/dynamic_update_slice"}
  ROOT %next = (s32[]{:T(128)}, f32[1000,64]{1,0:T(8,128)}) tuple(%i, %table.3)
}

%condition.1 (state: (s32[], f32[1000,64])) -> pred[] {
  %ten = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%i, %ten), direction=LT
}

%read.1 (p0: f32[1000,64], p1: s32[]) -> f32[100,64] {
  %p0 = f32[1000,64]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %slice.1 = f32[100,64]{1,0:T(8,128)} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={100,64}
}

%read.2 (p0: f32[1000,64], p1: s32[]) -> bf16[100,64] {
  %p0 = f32[1000,64]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %inner.1 = f32[100,64]{1,0:T(8,128)} fusion(%p0, %p1), kind=kLoop, calls=%read.1
  ROOT %convert.1 = bf16[100,64]{1,0:T(8,128)(2,1)} convert(%inner.1)
}

%update.1 (p0: f32[1000,64], p1: bf16[100,64], p2: s32[]) -> f32[1000,64] {
  %p0 = f32[1000,64]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[100,64]{1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %convert.2 = f32[100,64]{1,0:T(8,128)} convert(%p1)
  ROOT %update = f32[1000,64]{1,0:T(8,128)} dynamic-update-slice(%p0, %convert.2, %p2, %p2)
}

%add_rows.1 (p0: f32[1000,64], p1: s32[16], p2: f32[16,64]) -> f32[1000,64] {
  %p0 = f32[1000,64]{1,0:T(8,128)} parameter(0)
  %p1 = s32[16]{0:T(128)} parameter(1)
  %p2 = f32[16,64]{1,0:T(8,128)} parameter(2)
  ROOT %scatter.1 = f32[1000,64]{1,0:T(8,128)} scatter(%p0, %p1, %p2), update_window_dims={1}, to_apply=%add
}

%new_table.1 (p0: s32[16], p1: f32[16,64]) -> f32[1000,64] {
  %zero = f32[]{:T(128)} constant(0)
  %zeros = f32[1000,64]{1,0:T(8,128)} broadcast(%zero), dimensions={}
  %p0 = s32[16]{0:T(128)} parameter(0)
  %p1 = f32[16,64]{1,0:T(8,128)} parameter(1)
  ROOT %scatter.2 = f32[1000,64]{1,0:T(8,128)} scatter(%zeros, %p0, %p1), update_window_dims={1}, to_apply=%add
}

ENTRY %main.1 (table: f32[1000,64], indices: s32[16], updates: f32[16,64]) -> f32[1000,64] {
  %table = f32[1000,64]{1,0:T(8,128)} parameter(0)
  %indices = s32[16]{0:T(128)} parameter(1)
  %updates = f32[16,64]{1,0:T(8,128)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[1000,64]{1,0:T(8,128)}) tuple(%zero.1, %table)
  %copy-start.1 = (f32[16,64]{1,0:T(8,128)S(1)}, f32[16,64]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%updates)
  %while.1 = (s32[]{:T(128)}, f32[1000,64]{1,0:T(8,128)}) while(%start), condition=%condition.1, body=%body.1
  %table.4 = f32[1000,64]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
  %copy-done.1 = f32[16,64]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %table.5 = f32[1000,64]{1,0:T(8,128)} fusion(%table.4, %indices, %updates), kind=kCustom, calls=%add_rows.1, metadata={op_name="jit(step)/scatter-add"}
  ROOT %table.6 = f32[1000,64]{1,0:T(8,128)} fusion(%indices, %copy-done.1), kind=kCustom, calls=%new_table.1, metadata={op_name="jit(step)/scatter-add"}
}
"""  # noqa: E501
