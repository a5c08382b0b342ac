"""Compiles a program in another process, in which the TPU compiler writes the schedule of each instruction."""

import concurrent.futures
import dataclasses
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from .schedules import Schedule, dump_schedules, read_schedules
from .tpu_compiler import MemoryUse, compile_for_tpu, memory_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """What the compiler returns and writes.

    Attributes:
      text: the optimized program.
      memory: the memory that it uses.
      schedules: the schedules of its instructions by name.
    """

    text: str
    memory: MemoryUse
    schedules: dict[str, Schedule]


def compile_with_schedules(make: Callable[[], Any], *, flags: Mapping[str, str] | None = None) -> CompiledProgram:
    """Compiles a program. libtpu reads the flags that dump schedules only when a process loads it.

    Args:
      make: returns what `trace` returns. It is called in the other process, so it must be picklable.
      flags: flags of the compiler, name -> value, see `xla_flags`.

    Raises:
      OutOfMemoryError: the program does not fit into the memory of a device.
      UserError: the compiler does not know a flag, or rejects its value.
    """
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="deberta-jax-") as folder,
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(_compile, make, dict(flags or {}), Path(folder)).result()


def _compile(make: Callable[[], Any], flags: dict[str, str], folder: Path) -> CompiledProgram:
    jax.config.update("jax_platforms", "cpu")  # do not search for a TPU in this machine
    dump_schedules(folder)
    compiled = compile_for_tpu(make(), flags=flags)
    return CompiledProgram(text=compiled.as_text() or "", memory=memory_of(compiled), schedules=read_schedules(folder))
