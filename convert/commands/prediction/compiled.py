"""Keeps compiled programs on disk, so that the next start of a command has them."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax

from deberta_jax.cache_folder import cache_folder


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, in the folder of the caches of this library.

    JAX_COMPILATION_CACHE_DIR takes precedence. Programs for CPUs are kept apart for each kind of processor, because one
    may lack the instructions of another that shares the folder. Nothing is kept where the folder cannot be written.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_folder() / "compiled" / _processor()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor() -> str:
    """Returns a name for the kind of processor: on Linux with a digest of the instructions that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
