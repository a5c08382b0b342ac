"""Cycles of Pallas kernels, of which the TPU compiler says none: VLIW bundles of a grid step times grid steps.

One bundle is issued a cycle. Waits for memory are not in it; a branch is counted as taken and a loop inside a kernel as
run once.
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
from .tpu_compiler import out_of_cache

_CALL = "tpu_custom_call"  # what a Pallas kernel is to the compiler
_SCHEDULE = "schedule-analysis_final_bundles.txt"


def find_kernels(jaxpr: Any) -> dict[KernelKey, Any]:
    """The equation of every Pallas kernel of a program, by the kernel's name and the shapes of its results."""
    found = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            shapes = tuple(tuple(variable.aval.shape) for variable in equation.outvars)
            found[equation.params["name"], shapes] = equation
            continue
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= find_kernels(inner)
    return found


def kernel_cycles(make: Callable[[], tuple[Any, Any]]) -> dict[KernelKey, int]:
    """Cycles of one run of each kernel of a program on one device.

    Compiles them one by one in another process: libtpu reads only once, when it is loaded, that it shall write
    schedules, and for a whole step it would write gigabytes.

    Args:
      make: called in that process, so it must be picklable; gives the program's jaxpr and a device of its topology.

    Raises:
      RuntimeError: a kernel that has no schedule.
    """
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="deberta-jax-") as folder,
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(_compile_kernels, make, Path(folder)).result()


def _compile_kernels(make: Callable[[], tuple[Any, Any]], folder: Path) -> dict[KernelKey, int]:
    jax.config.update("jax_platforms", "cpu")
    write_schedules(folder)
    return price_kernels(*make(), folder)


def write_schedules(folder: Path) -> None:
    """Has libtpu write the schedule of all that this process compiles. To be called before `topology` loads it."""
    flags = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
    )
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()


def price_kernels(jaxpr: Any, device: Any, folder: Path) -> dict[KernelKey, int]:
    """Cycles of one run of each kernel of a program; each is compiled alone.

    Args:
      device: of a topology.
      folder: what `write_schedules` was told, and empty.

    Raises:
      RuntimeError: a kernel that has no schedule.
    """
    place = SingleDeviceSharding(device)
    found = {}
    for key, equation in find_kernels(jaxpr).items():
        arguments = [jax.ShapeDtypeStruct(one.aval.shape, one.aval.dtype, sharding=place) for one in equation.invars]
        alone = jax.jit(lambda *values, equation=equation: equation.primitive.bind(*values, **equation.params))
        with out_of_cache():
            alone.lower(*arguments).compile()
        schedules = [path.read_text() for path in folder.glob(f"*{_SCHEDULE}") if "-TLP-" not in path.name]
        bundles = [int(re.findall(r"total scheduled bundles:\s+(\d+)", text)[0]) for text in schedules if _CALL in text]
        for path in folder.iterdir():  # kernels of one name may follow
            path.unlink()
        if len(bundles) != 1:
            raise RuntimeError(f"the TPU compiler wrote {len(bundles)} schedules of the kernel {key[0]}, not one")
        found[key] = bundles[0] * math.prod(equation.params["grid_mapping"].grid)
    return found
