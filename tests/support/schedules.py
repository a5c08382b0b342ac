"""Schedules of the TPU compiler, short enough to count their bundles by hand."""

# Lines as libtpu 0.0.42 writes them, shortened: a kernel whose loop runs seven times for a grid of (2 tables, 3 rows).
# The first round only prefetches: the body is skipped. A block of the body runs in the first row of each table only,
# and its condition waits in memory for its use. A comment goes over two lines.
KERNEL = """= control target key start
LH: loop header
PF: predicated region fallthrough
= control target key end

     0   :  { %s20_s9 = smov.u32 0  ;;  %s21_s1 = smov.u32 0 /* phi copy */ } /* entry bundle: %kernel.1 = custom-call() */
   0x1 LB: > { %s22_s9 = sphi %s20_s9, %s33_s9   ;;  %s23_s1 = sphi %s21_s1, %s34_s1 } /* Start region 31 :: Start region 3 */
   0x2   : > { %p40_p0 = scmp.lt.s32.totalorder %s22_s9, 1 /* stage = 1 */  ;;  %9 = dma.hbm_to_vmem /* base_bounds: (32, 64)
element_size_in_bytes: 2048 */ }
   0x3   : > { %90 = sst [smem:[#allocation28_spill]] %s23_s1  ;;  %9 = sbr.rel (%p40_p0) target = $region16 }
   0x4   : > {}
   0x5   : > {}
   0x6   : > {}
   0x7   : > {} /* End region 3 */
   0x8   : > { %s50_s3 = sld [smem:[#allocation28_spill]]  ;;  %v1_v0 = vld [vmem:[%s7_s4] sm:$0xff] } /* Start region 5 */
   0x9   : > { %p51_p1 = scmp.ne.s32.totalorder %s50_s3, 0 }
   0xa   : > { %60 = sbr.rel (%p51_p1) target = $region14  ;;  %61 = vmatmul.bf16.vlgmr.msra.gmra.mxu0 %v1_v0 }
   0xb   : > {}
   0xc   : > {}
   0xd   : > {}
   0xe   : > {} /* End region 5 */
   0xf   : > { %62 = vmatmul.bf16.gmra.mxu0 %v1_v0  ;;  %63 = vmatmul.bf16.gmra.mxu1 %v1_v0 } /* Start region 6 */
  0x10   : > { %v2_v1 = vpop.f32.mrf.mxu0 } /* End region 6 */
  0x11 PF: > { %64 = vst [vmem:[%s7_s4] sm:$0xff] /*vst_source=*/%v2_v1 } /* Start/End empty region 14 */
  0x12   : > { %s70_s1 = sadd.s32 1, %s23_s1 }
  0x13   : > { %p71_p2 = scmp.ge.s32.totalorder %s70_s1, 3 }
  0x14   : > { %s34_s1 = smov.u32 (%p71_p2, %s70_s1), 0 }
  0x15 PF: > { %s33_s9 = sadd.s32 1, %s22_s9 } /* Start/End empty region 16 */
  0x16   : > { %p72_p3 = scmp.ge.s32.totalorder %s33_s9, 7 /* loop exit test */ }
  0x17   :  { %80 = sbr.rel (!%p72_p3) target = $region31 }
  0x18   :  {}
  0x19   :  {}
  0x1a   :  {}
  0x1b   :  {} /* End region 31 */
  0x1c   :  { %81 = vst [vmem:[%s7_s4] sm:$0xff] /*vst_source=*/%v2_v1 } /* exit bundle: %kernel.1 = custom-call() */
"""  # noqa: E501
