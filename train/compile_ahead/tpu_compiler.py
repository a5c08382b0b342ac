"""The TPU compiler on a machine without a TPU: a program's memory, collectives and cycles on a topology known by name.

libtpu, which `pip install deberta-jax[tpu]` brings, compiles ahead of time on any Linux machine. Nothing is run: every
figure is the compiler's estimate, or arithmetic on it, as the field's description says.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from deberta_jax.errors import UserError

from .hlo_costs import Cost, KernelKey, read_cost

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of TPU. Figures are of one JAX device: a chip, or one of a chip's two cores on tpu7x.

    hbm: bytes that a program may use, as the compiler says when it runs out.
    peak, bandwidth: bfloat16 FLOP/s and HBM bytes/s (`tpu_info.py` of jax's Pallas; cloud.google.com/tpu/docs).
    link: bytes/s, both directions together, of one axis of the torus of chips (jax-ml.github.io/scaling-book/tpus).
    network: bytes/s that leave for other slices (cloud.google.com/tpu/docs); None: not published.
    clock: Hz, the peak divided by what the matrix units do in a cycle: four units a core, of 2 * 128 * 128 on v4, v5e
      and v5p (v4 and v5p join two cores), of 2 * 256 * 256 on v6e and tpu7x.
    shapes: the slices that are rented out.
    """

    hbm: int
    peak: float
    bandwidth: float
    link: float
    clock: float
    shapes: tuple[str, ...]
    network: float | None = None
    devices: int = 1
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of get_topology_desc


_FLAT = tuple("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split())
_CUBE = tuple("2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16".split())
CHIPS = {
    "v4": Chip(
        hbm=int(30.75 * GIB),
        peak=275e12,
        bandwidth=1.23e12,
        link=90e9,
        clock=1.05e9,
        shapes=_CUBE,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        hbm=int(15.75 * GIB),
        peak=197e12,
        bandwidth=0.82e12,
        link=90e9,
        network=3.125e9,
        clock=1.5e9,
        shapes=_FLAT,
    ),
    "v5p": Chip(
        hbm=int(95.74 * GIB),
        peak=459e12,
        bandwidth=2.46e12,
        link=180e9,
        network=6.25e9,
        clock=1.75e9,
        shapes=_CUBE,
    ),
    "v6e": Chip(
        hbm=int(31.25 * GIB),
        peak=918e12,
        bandwidth=1.64e12,
        link=180e9,
        network=12.5e9,
        clock=1.75e9,
        shapes=_FLAT,
    ),
    "tpu7x": Chip(
        hbm=int(94.75 * GIB),
        peak=1153e12,
        bandwidth=3.7e12,
        link=180e9,
        network=6.25e9,
        clock=2.2e9,
        shapes=_CUBE,
        devices=2,
    ),
}

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of the machine, not of the topology; unset, libtpu complains
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is held: others may compile too
}


class OutOfMemoryError(Exception):
    """The program does not fit: bytes that it needs and that there are, a device."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"needs {needed / GIB:.2f} GiB of {available / GIB:.2f} GiB")
        self.needed, self.available = needed, available


def topology(name: str, *, slices: int = 1) -> tuple[Chip, list[Any]]:
    """The chip and the devices of a slice such as "v5e:16x16", or of several such slices joined by a network.

    A device of several slices names its own by `slice_index`.

    Raises:
      ValueError: no such slice, a number of them that is not allowed, or libtpu is missing.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].shapes:
        known = "; ".join(f"{kind}: {' '.join(chip.shapes)}" for kind, chip in CHIPS.items())
        raise UserError(f"no topology {name!r}; give one of these as CHIP:SHAPE: {known}")
    if slices < 1:
        raise UserError(f"slices is {slices}; give 1 or more")
    if slices > 1 and CHIPS[kind].network is None:
        known = ", ".join(kind for kind, chip in CHIPS.items() if chip.network)
        raise UserError(f"the speed between slices of {kind} is not published; several slices are for {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs its compiler, libtpu: pip install deberta-jax[tpu]")
    for variable, value in _ENVIRONMENT.items():  # libtpu reads it once, when it is loaded
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options = dict(CHIPS[kind].options)
    if math.prod(sizes(name)) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if slices > 1:
        options["num_slices"] = slices
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return CHIPS[kind], list(described.devices)


def sizes(name: str) -> tuple[int, ...]:
    """The torus of a topology: "v5e:16x16" -> (16, 16)."""
    return tuple(int(size) for size in name.partition(":")[2].split("x"))


def trace(function: Any, *arguments: Any) -> Any:
    """Traces a jitted function, with the mesh in use on which its abstract arguments are placed: attention reads it.

    Args:
      function: what jax.jit returns.
      arguments: trees of ShapeDtypeStruct with shardings on a mesh of `topology`'s devices.
    """
    with jax.set_mesh(jax.tree.leaves(arguments)[0].sharding.mesh):
        return function.trace(*arguments)


@contextlib.contextmanager
def out_of_cache() -> Iterator[None]:
    """Keeps what is compiled out of JAX's persistent cache: it could not read a program for a topology back."""
    setting = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, setting)
    jax.config.update(setting, math.inf)
    try:
        yield
    finally:
        jax.config.update(setting, before)


def compile_for_tpu(traced: Any, *, flags: Mapping[str, str] | None = None) -> Any:
    """Compiles what `trace` gave.

    Args:
      flags: of the compiler, name -> value, see `xla_flags`.

    Raises:
      OutOfMemoryError: the program does not fit.
      ValueError: a flag that the compiler does not know.
    """
    try:
        with out_of_cache():
            return traced.lower().compile(compiler_options=dict(flags or {}))
    except jax.errors.JaxRuntimeError as error:
        if unknown := re.search(r"No such compile option: '?(\w+)", str(error)):
            raise UserError(
                f"the TPU compiler does not know the flag {unknown[1]}; leave it out or install another libtpu"
            ) from None
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        raise needed from None


def cost_of(compiled: Any, *, kernels: Mapping[KernelKey, int]) -> Cost:
    """What a compiled program costs. kernels: cycles of a run of each Pallas kernel, see `tpu_kernels`."""
    memory: Any = compiled.memory_analysis()
    return read_cost(
        compiled.as_text() or "",
        kernels=kernels,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
    )


def out_of_memory(message: str) -> OutOfMemoryError | None:
    """The sizes in the compiler's message, where it says that HBM does not do. It has two forms."""
    size = r"\(?([\d.]+)([KMGT])\)?"
    found = re.search(rf"{size} exceeds available HBM {size}", message) or re.search(
        rf"Used {size} of {size} hbm", message
    )
    if found is None:
        return None
    needed, needed_unit, available, available_unit = found.groups()
    scale = {unit: 1 << 10 * power for power, unit in enumerate("KMGT", start=1)}
    return OutOfMemoryError(int(float(needed) * scale[needed_unit]), int(float(available) * scale[available_unit]))
