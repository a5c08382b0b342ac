"""What the figures were measured on."""

import subprocess

from deberta_jax.versions import version_of

PACKAGES = ("jax", "flax", "torch", "transformers", "triton", "flashdeberta", "disentangled-flash")


def find_gpu() -> dict[str, str]:
    """Returns card and driver of the first GPU.

    Raises:
      SystemExit: if there is none.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        card, driver = found.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        raise SystemExit(
            "no NVIDIA GPU found: `nvidia-smi` does not list one; --dry-run runs everything on the CPU"
        ) from None
    return {"card": card, "driver": driver}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that are installed."""
    found = {package: version_of(package) for package in PACKAGES}
    return {package: version for package, version in found.items() if version != "unknown"}
