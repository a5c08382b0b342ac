"""glibc's memory allocator, told to keep freed memory: XLA on a CPU frees its temporary arrays after every step."""

import ctypes
import os
from pathlib import Path

# Parameters of mallopt(3), from <malloc.h>, and their values.
_ONE_ARENA = (-8, 1)  # M_ARENA_MAX; the others return a heap to the system as soon as it is empty
_NO_MAPPINGS = (-4, 0)  # M_MMAP_MAX; a large array with a mapping of its own is unmapped when it is freed
_TRIM_ABOVE = (-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes at the end of the heap
_GROW_BY = (-2, 64 * 2**20)  # M_TOP_PAD, bytes
_ACCELERATORS = ("accel*", "nvidia[0-9]*", "vfio/[0-9]*")  # device files of TPUs and GPUs


def keep_freed_memory() -> bool:
    """Makes this process reuse the memory of freed arrays, and returns whether it does.

    Otherwise the kernel clears the pages of all temporary arrays again in every step, which takes a fifth to a quarter
    of a small model's training step. Call it before JAX is imported. It does nothing where the system's allocator is
    not glibc's, where the environment configures an allocator, and beside an accelerator, whose arrays are elsewhere.
    """
    configured = any(name.startswith("MALLOC_") for name in os.environ) or {"LD_PRELOAD", "GLIBC_TUNABLES"} & set(
        os.environ
    )
    if configured or any(next(Path("/dev").glob(pattern), None) for pattern in _ACCELERATORS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process itself
        return False
    return all(mallopt(*parameter) for parameter in (_ONE_ARENA, _NO_MAPPINGS, _TRIM_ABOVE, _GROW_BY))
