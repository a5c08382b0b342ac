# shellcheck shell=bash
# Flags of the TPU compiler for each chip; sourced. The run scripts pass them as LIBTPU_INIT_ARGS, as XLA_FLAGS with a
# flag of the TPU compiler aborts the process.
#
# A flag is here only if it changed a compiled program for the better, with libtpu 0.0.42; the tests compile with each.
# "Asynchronous" is what the schedule says: how much time that saves on a real slice has not been measured.
# train/xla_flags.py has the same table, for compile-ahead; a test holds them equal.

# xla_flags CHIP: the flags in one line.
xla_flags() {
  local flags=()
  case $1 in
    v5e | v5p | v6e)
      flags=(
        # All-reduces may run beside other work. Of no effect without the next.
        --xla_enable_async_all_reduce=true
        # All-reduces are spread over the fusions that are computed meanwhile.
        --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
        # All-reduces of more than 1 MiB are left alone; by default all gradients of the layers are combined into one
        # when the backward pass is over, which nothing can be computed beside. Without it only the gradient of the
        # vocabulary is asynchronous. Smaller ones (biases, LayerNorm) are combined, as each has its latency.
        --xla_jf_crs_combiner_threshold_in_bytes=1048576
      )
      ;;
    v4) ;;    # with the flags above a small network does not compile: it runs out of vector memory, 16 MiB on v4
    tpu7x) ;; # the compiler hands all-reduces to the SparseCores, asynchronously, by itself
    *)
      echo "xla_flags: $1 given; allowed: v4, v5e, v5p, v6e, tpu7x" >&2
      return 2
      ;;
  esac
  echo "${flags[*]}"
}

# Left out on purpose:
#   xla_tpu_enable_async_collective_fusion, ..._fuse_all_gather, ..._multiple_steps, xla_enable_async_all_gather,
#   xla_tpu_overlap_compute_collective_tc: all-reduces are the same without them, all-gathers asynchronous anyway
#   xla_tpu_enable_data_parallel_all_reduce_opt, xla_tpu_data_parallel_opt_different_sized_ops: changed nothing
#   xla_tpu_spmd_rng_bit_generator_unsafe: dropout would depend on the mesh, and a resumed run on the slice it is given
