"""A small file system, which a test can fill up."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, *, megabytes: int) -> Iterator[bool]:
    """Mounts a file system of this size in the folder, which is created if necessary.

    Yields:
      Whether mounting is allowed here. Otherwise the folder is an ordinary one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, content: bytes = bytes(1)) -> None:
    """Appends to a file until its file system has no room left for it.

    Args:
      content: what to append, again and again.
    """
    with open(path, "ab", buffering=0) as filler:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while filler.write(content * size):
                    pass


@contextlib.contextmanager
def mounted(folder: Path, *, megabytes: int) -> Iterator[None]:
    """Mounts a file system of this size as `small_disk` does. Skips the test where that is not allowed."""
    with small_disk(folder, megabytes=megabytes) as allowed:
        if not allowed:
            pytest.skip("mounting a small file system is not allowed here")
        yield
