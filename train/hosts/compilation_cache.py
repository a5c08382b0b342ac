"""JAX's persistent compilation cache: compiled programs are kept on disk for the next start of a run."""

import os

import jax

from ..configs import FinetuneConfig, PretrainConfig

# Names of the backends whose compilers are slow. JAX names a GPU "gpu", and its plug-ins name it by the maker.
_CACHED_BACKENDS = ("tpu", "gpu", "cuda", "rocm")


def enable_compilation_cache(config: PretrainConfig | FinetuneConfig) -> None:
    """Sets the folder of compiled programs: `compilation_cache` of the settings, else `compiled/` of the run's folder.

    The default is for TPUs and GPUs. The environment variable JAX_COMPILATION_CACHE_DIR takes precedence.
    Nothing is cached by default on a CPU, where programs compile quickly.

    The folder keeps every program. By default JAX keeps those that compiled for a second; the start of a run has dozens
    of small ones, which together compile for seconds. The environment variable
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS takes precedence.
    """
    folder = config.compilation_cache
    if folder is None and jax.default_backend() in _CACHED_BACKENDS and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = config.output / "compiled"
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
