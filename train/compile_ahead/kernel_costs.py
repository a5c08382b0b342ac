"""Estimates the cycles of Pallas kernels, for which the TPU compiler gives no estimate.

The estimate of a kernel is the number of VLIW bundles in the schedule of one grid step, times the number of grid steps:
a TPU core issues one bundle per cycle. It leaves out waits for memory, counts every branch as taken, and counts a loop
inside the kernel as run once.
"""

import concurrent.futures
import math
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from .hlo_costs import KernelKey
from .tpu_compiler import without_compilation_cache

_CALL = "tpu_custom_call"  # the compiler's name for a Pallas kernel
_SCHEDULE = "schedule-analysis_final_bundles.txt"  # end of the name of a dumped file, with libtpu 0.0.42
# In that file: "total scheduled bundles:   1234"
_BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


def find_kernels(jaxpr: Any) -> dict[KernelKey, Any]:
    """Returns the equation of every Pallas kernel of a program, by the kernel's name and the shapes of its results."""
    kernels = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            shapes = tuple(tuple(variable.aval.shape) for variable in equation.outvars)
            kernels[equation.params["name"], shapes] = equation
            continue
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)  # a parameter is a closed jaxpr, a jaxpr or something else
            if hasattr(inner, "eqns"):
                kernels |= find_kernels(inner)
    return kernels


def kernel_cycles(make: Callable[[], tuple[Any, Any]]) -> dict[KernelKey, int]:
    """Returns the cycles of one run of each kernel of a program on one device.

    Compiles the kernels one by one in another process. libtpu reads the flags that dump schedules only when it is
    loaded, and this process has loaded it without them: for a whole step it would write gigabytes.

    Args:
      make: returns the program's jaxpr and a device of its topology. It is called in the other process, so it must be
        picklable.

    Raises:
      RuntimeError: the compiler wrote no schedule for a kernel.
    """
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="deberta-jax-") as folder,
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(_make_and_price_kernels, make, Path(folder)).result()


def _make_and_price_kernels(make: Callable[[], tuple[Any, Any]], folder: Path) -> dict[KernelKey, int]:
    jax.config.update("jax_platforms", "cpu")
    dump_schedules(folder)
    return price_kernels(*make(), folder)


def dump_schedules(folder: Path) -> None:
    """Makes libtpu write the schedule of everything that this process compiles. Call it before libtpu is loaded."""
    flags = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
    )
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()


def price_kernels(jaxpr: Any, device: Any, folder: Path) -> dict[KernelKey, int]:
    """Compiles each kernel of a program alone and returns the cycles of one run of it.

    Args:
      jaxpr: the program.
      device: a device of a topology.
      folder: the empty folder that was passed to `dump_schedules`.

    Raises:
      RuntimeError: the compiler wrote no schedule for a kernel.
    """
    sharding = SingleDeviceSharding(device)
    cycles = {}
    for key, equation in find_kernels(jaxpr).items():
        arguments = [
            jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype, sharding=sharding)
            for variable in equation.invars
        ]
        kernel = jax.jit(lambda *values, equation=equation: equation.primitive.bind(*values, **equation.params))
        with without_compilation_cache():
            kernel.lower(*arguments).compile()
        # The compiler also writes the schedules of the program's start and end, which contain no kernel, and that of
        # the whole program ("-TLP-"), which contains the kernel and the call.
        schedules = [path.read_text() for path in folder.glob(f"*{_SCHEDULE}") if "-TLP-" not in path.name]
        bundles = [int(_BUNDLES.findall(text)[0]) for text in schedules if _CALL in text]
        for path in folder.iterdir():  # the next kernel may have the same name
            path.unlink()
        if len(bundles) != 1:
            raise RuntimeError(f"the TPU compiler wrote {len(bundles)} schedules for the kernel {key[0]}, expected one")
        cycles[key] = bundles[0] * math.prod(equation.params["grid_mapping"].grid)
    return cycles
