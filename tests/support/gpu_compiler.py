"""XLA's compiler for NVIDIA GPUs, on a machine without a GPU. It needs `PACKAGES`, but neither CUDA nor a driver.

The compiler gets a description of the card. It cannot try out implementations of a matrix product (autotuning), so a
program may differ from the one that a GPU runs: it shows what is stored, not how fast it runs.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.topologies import TopologyDescription
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deberta_jax.train.compile_ahead.tpu_compiler import without_compilation_cache

# The second one only keeps JAX from warning that it finds no CUDA.
PACKAGES = ("jax-cuda12-plugin==VERSION-OF-JAX", "nvidia-cuda-runtime-cu12")

_CUDA = next((name for name in ("cuda12", "cuda13") if importlib.util.find_spec(f"jax_{name}_plugin")), None)

needs_cuda_compiler = pytest.mark.skipif(
    _CUDA is None or importlib.util.find_spec("jax_plugins") is None,
    reason=f"no CUDA compiler: pip install {' '.join(PACKAGES)}",
)

# XLA's GpuTargetConfigProto as text, from NVIDIA's data sheets and the CUDA programming guide (compute capabilities).
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {block_memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""

_CARDS: dict[str, dict[str, Any]] = {
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "major": 9,
        "cores": 132,
        "units": 128,
        "clock": 1.98,
        "bandwidth": 3_352_320_000_000,
        "cache": 50 << 20,
        "memory": 84_929_347_584,
        "shared_memory": 228 << 10,
        "block_memory": 227 << 10,
    },
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "major": 8,
        "cores": 108,
        "units": 64,
        "clock": 1.41,
        "bandwidth": 2_039_000_000_000,
        "cache": 40 << 20,
        "memory": 84_987_740_160,
        "shared_memory": 164 << 10,
        "block_memory": 163 << 10,
    },
}

# No GPU is there to time alternatives on.
_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def compile_for_gpu(function: Callable[..., Any], *arguments: Any, card: str = "h100", **options: Any) -> Any:
    """Compiles a function for one GPU, which is the current mesh while the function is traced.

    Args:
      function: a function of arrays, not jitted yet.
      arguments: arrays or `jax.ShapeDtypeStruct`s, in any trees.
      card: `h100` or `a100`.
      options: options of `jax.jit`.

    Returns:
      The compiled program, of which `memory_analysis()` and `as_text()` work. It cannot run.
    """
    mesh = Mesh(np.array([_device(card)]), ("data",), axis_types=(AxisType.Auto,))
    placement = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), arguments)
    with jax.set_mesh(mesh), without_compilation_cache():
        return jax.jit(function, **options).lower(*placed).compile(compiler_options=_OPTIONS)


def _device(card: str) -> Any:
    """Returns a device that programs can be compiled for and nothing can run on.

    `jax.experimental.topologies` would look for a GPU first.
    """
    from jax._src import xla_bridge

    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # of cuDNN and cuBLAS, which compilation does not call
    jax.devices()  # loads plugins
    if "cuda" not in xla_bridge._topology_factories:
        importlib.import_module(f"jax_plugins.xla_{_CUDA}").initialize()
    create = xla_bridge._topology_factories["cuda"]
    topology = create(card, topology="1x1x1", target_config=_TARGET.format(**_CARDS[card]))
    return TopologyDescription(topology._make_compile_only_devices()).devices[0]
