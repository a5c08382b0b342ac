# shellcheck shell=bash
# Flags of the TPU compiler.

xla_flags() {
  case $1 in
    v4 | v5e | v5p | v6e | tpu7x) ;;
    *) echo "xla_flags: $1 given; allowed: v4, v5e, v5p, v6e, tpu7x" >&2 && return 2 ;;
  esac
  echo "--xla_tpu_enable_async_collective_fusion=true"
}
