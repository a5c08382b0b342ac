"""Freed memory is kept: the page faults of arrays that are allocated and freed again and again."""

import os
import platform
import subprocess
import sys

import pytest

ROUNDS, MEBIBYTES = 20, 50
PROGRAM = f"""
import resource, sys, threading
from deberta_jax.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def step():
    for _ in range({ROUNDS}):
        bytearray(b"x") * ({MEBIBYTES} << 20)

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for target in (step, threading.Thread(target=step).run):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(*arguments: str, **variables: str) -> tuple[str, int]:
    """Returns whether memory is kept, and the page faults of 40 arrays of 50 MiB."""
    ours = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
    ours = {name: value for name, value in ours.items() if not name.startswith("MALLOC_")}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**ours, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = finished.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the system's allocator is not glibc's")
def test_arrays_get_the_memory_of_freed_ones() -> None:
    kept, faults = run("keep")
    if kept == "False":
        pytest.skip("this machine has an accelerator")
    assert kept == "True"
    assert faults < run("leave")[1] / 5


def test_an_allocator_that_the_user_configures_is_left_alone() -> None:
    assert run("keep", MALLOC_ARENA_MAX="2")[0] == "False"
