# shellcheck shell=bash
# The flags of the TPU compiler for each chip. The run scripts source this file and pass the flags as LIBTPU_INIT_ARGS,
# because a flag of the TPU compiler in XLA_FLAGS aborts the process.
#
# Each flag improves a compiled program with libtpu 0.0.42, and the tests compile with it. "Asynchronous" describes the
# compiled schedule; how much time it saves on a real slice has not been measured.
# train/compile_ahead/xla_flags.py has the same table for compile-ahead; a test keeps the two equal.

# xla_flags CHIP: prints the flags in one line.
xla_flags() {
  local flags=()
  case $1 in
    v5e | v5p | v6e)
      flags=(
        # Allows all-reduces to run beside other work. It has no effect without the next flag.
        --xla_enable_async_all_reduce=true
        # Spreads an all-reduce over the fusions that are computed at the same time.
        --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
        # Combines all-reduces only up to 1 MiB (biases, LayerNorm), to save latency. By default, the gradients of all
        # layers are combined into one all-reduce after the backward pass, when no computation is left to overlap
        # with, and only the gradient of the vocabulary is asynchronous.
        --xla_jf_crs_combiner_threshold_in_bytes=1048576
      )
      ;;
    v4) ;;    # with these flags a small network does not compile: it exceeds the vector memory of 16 MiB
    tpu7x) ;; # the compiler runs all-reduces asynchronously on the SparseCores by default
    *)
      echo "xla_flags: $1 given; allowed: v4, v5e, v5p, v6e, tpu7x" >&2
      return 2
      ;;
  esac
  echo "${flags[*]}"
}

# Flags that were tried and left out:
#   xla_tpu_enable_async_collective_fusion, ..._fuse_all_gather, ..._multiple_steps, xla_enable_async_all_gather,
#   xla_tpu_overlap_compute_collective_tc: do not change all-reduces, and all-gathers are asynchronous without them
#   xla_tpu_enable_data_parallel_all_reduce_opt, xla_tpu_data_parallel_opt_different_sized_ops: no change
#   xla_tpu_spmd_rng_bit_generator_unsafe: makes dropout depend on the mesh, so a run resumed on another slice differs
