"""Runs the TPU compiler on a machine without a TPU: memory, collectives and cycles of a program on a named topology.

libtpu, which `pip install deberta-jax[tpu]` installs, compiles ahead of time on any Linux machine. Nothing is run: each
figure is the compiler's estimate or arithmetic on it.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from deberta_jax.errors import MissingPackageError, UserError

from .hlo_costs import Peaks

GIB = 1 << 30
_PRODUCT_ROWS = 16  # rows of bfloat16 in a vector register, which an instruction multiplies with a matrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of TPU. The figures are per JAX device: a chip, or one of the two cores of a tpu7x chip.

    Attributes:
      hbm: bytes of high-bandwidth memory that a program may use, from the compiler's own error message.
      peak: bfloat16 FLOP/s (jax's `pallas/tpu_info.py`; cloud.google.com/tpu/docs).
      bandwidth: bytes/s of its HBM, from the same sources.
      link: bytes/s of one axis of the torus of chips, both directions together (jax-ml.github.io/scaling-book/tpus).
      clock: Hz. It is the peak divided by the operations of the matrix units in one cycle: four units a core, each
        2 * 128 * 128 on v4, v5e and v5p (two cores a chip on v4 and v5p), each 2 * 256 * 256 on v6e and tpu7x.
      shapes: the slices that Google Cloud offers.
      network: bytes/s from one chip to other slices (cloud.google.com/tpu/docs); None if it is not published.
      devices: JAX devices of a chip.
      cores: cores of a JAX device. The compiler writes the schedule of one core, which does its share of the work.
      matrix_unit: rows and columns of the matrix that a matrix unit holds.
      options: further arguments of `jax.experimental.topologies.get_topology_desc`.
    """

    hbm: int
    peak: float
    bandwidth: float
    link: float
    clock: float
    shapes: tuple[str, ...]
    network: float | None = None
    devices: int = 1
    cores: int = 1
    matrix_unit: int = 128
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def peaks(self) -> Peaks:
        """The published speed of a JAX device and, for its products, of one core."""
        operations = 2 * _PRODUCT_ROWS * self.matrix_unit**2
        return Peaks(
            bytes_per_cycle=self.bandwidth / self.clock,
            cycles_per_product=operations * self.clock * self.cores / self.peak,
        )


class Topology(NamedTuple):
    """The chip of a slice and all its devices. A device of several slices has its slice's number as `slice_index`."""

    chip: Chip
    devices: list[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """The compiler's account of one device's memory.

    Attributes:
      argument_bytes: state and batch.
      temporary_bytes: scratch space, some of it outside HBM.
      program_bytes: the code.
      peak_bytes: the largest use of HBM at any time, without the code.
    """

    argument_bytes: int
    temporary_bytes: int
    program_bytes: int
    peak_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Bytes of HBM that the program needs."""
        return self.peak_bytes + self.program_bytes


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
        cores=2,
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
        cores=2,
    ),
    "v6e": Chip(
        hbm=int(31.25 * GIB),
        peak=918e12,
        bandwidth=1.64e12,
        link=180e9,
        network=12.5e9,
        clock=1.75e9,
        shapes=_FLAT,
        matrix_unit=256,
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
        matrix_unit=256,
    ),
}

# libtpu reads these variables once, when it is loaded.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any valid type, not that of the topology; unset, libtpu logs errors
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is used, so several processes may load libtpu at the same time
}


class OutOfMemoryError(Exception):
    """The program does not fit into the memory of a device.

    Attributes:
      needed: bytes that it needs.
      available: bytes that a device has.
    """

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"needs {needed / GIB:.2f} GiB of {available / GIB:.2f} GiB")
        self.needed, self.available = needed, available

    def __reduce__(self) -> tuple[type["OutOfMemoryError"], tuple[int, int]]:
        return type(self), (self.needed, self.available)  # it is raised in one process and handled in another


def topology(name: str, *, slices: int = 1) -> Topology:
    """Returns the chip and the devices of a slice, or of several equal slices joined by the data-center network.

    Args:
      name: CHIP:SHAPE, such as "v5e:16x16".
      slices: number of slices.

    Raises:
      UserError: the slice does not exist, or there cannot be so many of it.
      MissingPackageError: libtpu is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or shape not in CHIPS[kind].shapes:
        known = "; ".join(f"{kind}: {' '.join(chip.shapes)}" for kind, chip in CHIPS.items())
        raise UserError(f"no topology {name!r}; give one of these as CHIP:SHAPE: {known}")
    if slices < 1:
        raise UserError(f"slices is {slices}; give 1 or more")
    if slices > 1 and CHIPS[kind].network is None:
        known = ", ".join(kind for kind, chip in CHIPS.items() if chip.network)
        raise UserError(
            f"the network speed between slices of {kind} is not published; give one slice, or a chip of {known}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise MissingPackageError("libtpu, the TPU compiler, is not installed: pip install deberta-jax[tpu]")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options = dict(CHIPS[kind].options)
    if math.prod(torus_shape(name)) == 1:  # libtpu assumes hosts of several chips otherwise
        options["chips_per_host_bounds"] = [1, 1, 1]
    if slices > 1:
        options["num_slices"] = slices
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return Topology(CHIPS[kind], list(described.devices))


def torus_shape(name: str) -> tuple[int, ...]:
    """Returns the sides of a topology's torus of chips: "v5e:16x16" -> (16, 16)."""
    return tuple(int(side) for side in name.partition(":")[2].split("x"))


def trace(function: Any, *arguments: Any) -> Any:
    """Traces a jitted function under the mesh of its arguments, because attention reads the mesh in use.

    Args:
      function: what jax.jit returns.
      arguments: trees of ShapeDtypeStruct with shardings on a mesh of the devices of a `topology`.
    """
    with jax.set_mesh(jax.tree.leaves(arguments)[0].sharding.mesh):
        return function.trace(*arguments)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Keeps programs out of JAX's persistent cache, which cannot load a program that was compiled for a topology.

    A threshold that no compilation reaches disables writing only. `jax_enable_compilation_cache` would not do: JAX
    evaluates it once per process.
    """
    setting = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, setting)
    jax.config.update(setting, math.inf)
    try:
        yield
    finally:
        jax.config.update(setting, before)


def compile_for_tpu(traced: Any, *, flags: Mapping[str, str] | None = None) -> Any:
    """Compiles a traced function.

    Args:
      traced: what `trace` returns.
      flags: flags of the compiler, name -> value, see `xla_flags`.

    Raises:
      OutOfMemoryError: the program does not fit into the memory of a device.
      UserError: the compiler does not know a flag, or rejects its value.
    """
    try:
        with without_compilation_cache():
            return traced.lower().compile(compiler_options=dict(flags or {}))
    except jax.errors.JaxRuntimeError as error:
        if unknown := re.search(r"No such compile option: '?(\w+)", str(error)):
            raise UserError(
                f"the TPU compiler does not know the flag {unknown[1]}; leave it out or install another libtpu"
            ) from None
        if rejected := re.search(r"Failed to parse ('.*?') into flag (\w+)", str(error)):
            raise UserError(
                f"the TPU compiler does not accept {rejected[1]} as the value of the flag {rejected[2]}; give another"
            ) from None
        out_of_memory = parse_out_of_memory(str(error))
        if out_of_memory is None:
            raise
        raise out_of_memory from None


def memory_of(compiled: Any) -> MemoryUse:
    """Returns the memory that a compiled program uses."""
    analysis: Any = compiled.memory_analysis()
    return MemoryUse(
        argument_bytes=analysis.argument_size_in_bytes,
        temporary_bytes=analysis.temp_size_in_bytes,
        program_bytes=analysis.generated_code_size_in_bytes,
        peak_bytes=analysis.peak_memory_in_bytes,
    )


def parse_out_of_memory(message: str) -> OutOfMemoryError | None:
    """Returns the sizes in a message of the compiler, or None if the message is not about HBM.

    libtpu 0.0.42 reports a lack of HBM in two forms, depending on the pass that detects it:

        ... HLO temporaries (63.66G) exceeds available HBM (15.75G).
        Ran out of memory in memory space hbm. Used 16.09G of 15.75G hbm. Exceeded hbm capacity by 346.52M.
    """
    size = r"\(?([\d.]+)([KMGT])\)?"
    match = re.search(rf"{size} exceeds available HBM {size}", message) or re.search(
        rf"Used {size} of {size} hbm", message
    )
    if match is None:
        return None
    needed, needed_unit, available, available_unit = match.groups()
    scale = {unit: 1 << 10 * power for power, unit in enumerate("KMGT", start=1)}
    return OutOfMemoryError(int(float(needed) * scale[needed_unit]), int(float(available) * scale[available_unit]))
