"""JAX's persistent compilation cache: compiled programs are kept on disk for the next start of a run."""

import os

import jax

from ..configs import FinetuneConfig, PretrainConfig


def enable_compilation_cache(config: PretrainConfig | FinetuneConfig) -> None:
    """Sets the folder of compiled programs: `compilation_cache` of the settings, else `compiled/` of a run on TPUs.

    The environment variable JAX_COMPILATION_CACHE_DIR takes precedence over the default. Nothing is cached by default
    on other platforms, where programs compile quickly.
    """
    folder = config.compilation_cache
    if folder is None and jax.default_backend() == "tpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = config.output / "compiled"
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
