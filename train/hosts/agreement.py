"""Checks at the start of a run that all of its processes have the same settings, code, versions and time.

Processes that differ would train silently wrong, or hang in a collective that only some of them call.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import platform
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from deberta_jax.errors import UserError
from deberta_jax.versions import version_of

from ..configs import FinetuneConfig, PretrainConfig
from .processes import CoordinationClient

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "numpy", "optax", "orbax-checkpoint", "grain")
# Settings of JAX that change random numbers, types, programs or their numbers.
_JAX_SETTINGS = (
    "jax_threefry_partitionable",
    "jax_threefry_gpu_kernel_lowering",
    "jax_default_prng_impl",
    "jax_random_seed_offset",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_disable_jit",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_enable_checks",
    "jax_disable_most_optimizations",
    "jax_optimization_level",
    "jax_remove_size_one_mesh_axis_from_type",
)
_TIMEOUT_MS = 300_000
_DIFFERENCES_SHOWN = 5  # of a host
_HOSTS_SHOWN = 3


def check_agreement(
    client: CoordinationClient, facts: dict[str, Any], *, index: int, count: int, clock_within: float
) -> list[str]:
    """Compares the facts of all processes. Collective.

    What most processes have in common is taken as right, so that a message names the few that differ.

    Args:
      client: the client of JAX's coordination service.
      facts: nested dict of JSON values that have to be equal on all processes.
      index: the index of this process.
      count: the number of processes.
      clock_within: seconds by which a clock may differ from the median of all clocks.

    Returns:
      The name of every process for messages, such as "process 0 on host-a".

    Raises:
      UserError: processes differ. Every process raises the same error, which names them and says in what they differ.
    """
    client.wait_at_barrier("deberta_jax/agree", _TIMEOUT_MS)  # so that all clocks are read at the same time
    mine = {"host": socket.gethostname(), "clock": time.time(), "facts": facts}
    client.key_value_set(f"deberta_jax/facts/{index}", json.dumps(mine, default=str))
    processes = [
        json.loads(client.blocking_key_value_get(f"deberta_jax/facts/{process}", _TIMEOUT_MS))
        for process in range(count)
    ]
    names = [f"process {number} on {process['host']}" for number, process in enumerate(processes)]
    facts_of = [dict(_flatten(process["facts"])) for process in processes]
    clocks = [process["clock"] for process in processes]
    complaints = []
    for name, differences, clock in zip(names, _differences(facts_of), clocks, strict=True):
        offset = clock - statistics.median(clocks)
        if abs(offset) > clock_within:
            differences.append(f"its clock differs by {offset:+.0f} s (at most {clock_within:g} s allowed)")
        if differences:
            complaints.append(f"{name}: {', '.join(differences[:_DIFFERENCES_SHOWN])}")
    if len(complaints) > _HOSTS_SHOWN:
        complaints[_HOSTS_SHOWN:] = [f"and {len(complaints) - _HOSTS_SHOWN} more hosts"]
    if complaints:
        raise UserError(
            f"the hosts of this run differ, and nothing was trained: {'; '.join(complaints)}. On all hosts, install "
            "the same wheel, run the same command and synchronize the clocks (NTP)"
        )
    return names


def gather_facts(config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Returns everything that has to be equal on all processes of a run, as nested JSON values."""
    settings = dataclasses.asdict(config)
    for name in ("index", "coordinator"):  # hosts may know process 0 by different addresses
        del settings["hosts"][name]
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    versions |= {package: version_of(package) for package in _PACKAGES}
    return {
        "settings": json.loads(json.dumps(settings, default=str)),
        "version": versions,
        "code of deberta_jax": code_fingerprint(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
        "jax.config": {name: jax.config.values[name] for name in _JAX_SETTINGS if name in jax.config.values},
        "devices": jax.local_device_count(),
    }


@functools.cache
def code_fingerprint() -> str:
    """Returns a hash of all Python files of this library, wherever they are installed."""
    import deberta_jax

    # In a checkout, train/ lies beside deberta_jax/; in an installed wheel it lies inside.
    folders = {Path(deberta_jax.__file__).parent, Path(__file__).parents[1]}
    files = sorted((path for folder in folders for path in folder.rglob("*.py")), key=lambda path: path.parts[-2:])
    digest = hashlib.sha256()
    for path in files:
        digest.update("/".join(path.parts[-2:]).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _flatten(facts: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields each value of a nested dict as its dotted name and its JSON."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, json.dumps(facts)


def _differences(facts_of: list[dict[str, str]]) -> list[list[str]]:
    """Returns, for every process, in what it differs from the value that most processes have."""
    keys = sorted({key for facts in facts_of for key in facts})
    common = {
        key: collections.Counter(facts.get(key, "absent") for facts in facts_of).most_common(1)[0][0] for key in keys
    }
    return [
        [
            f"{key} is {facts.get(key, 'absent')}, elsewhere {value}"
            for key, value in common.items()
            if facts.get(key, "absent") != value
        ]
        for facts in facts_of
    ]
