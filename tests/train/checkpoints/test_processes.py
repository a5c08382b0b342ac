"""Checkpoints of several processes, and of a process that is killed while it saves."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.train.checkpoints.checkpointer import Checkpointer

from ...support.checkpoint_states import abstract
from ...support.checkpoint_worker import values_of
from ...support.cluster import cluster, wait_for_success, wait_until


def run_program(*arguments: str, folder: Path, count: int = 2) -> None:
    """Runs a program of `checkpoint_worker` on `folder`, with four devices in all."""
    command = ["-m", "tests.support.checkpoint_worker", arguments[0], str(folder), *arguments[1:]]
    with cluster(command, folder.with_name("logs"), count=count, devices=4 // count) as processes:
        wait_for_success(processes, seconds=400)


def assert_one_device_reads(folder: Path, step: int) -> None:
    """The checksums of one mesh hold on another one, here on a single device."""
    state = dict.fromkeys(("rows", "both", "columns", "copies"), jnp.asarray(values_of(step)))
    with Checkpointer(folder, keep=9, identity={}) as checkpointer:
        restored = checkpointer.restore(abstract(state))
    assert restored is not None
    assert (restored.step, restored.data) == (step, {"place": step})
    chex.assert_trees_all_equal(restored.state, state)


@pytest.mark.slow
def test_a_write_that_fails_on_one_process_only(tmp_path: Path) -> None:
    run_program("one_process_fails", folder=tmp_path / "run")


@pytest.mark.slow
def test_a_step_that_processes_see_differently(tmp_path: Path) -> None:
    run_program("seen_differently", folder=tmp_path / "run")
    assert_one_device_reads(tmp_path / "run", step=2)


@pytest.mark.slow
def test_a_checkpoint_moves_from_mesh_to_mesh(tmp_path: Path) -> None:
    """2 processes, then 4, then 1: bit for bit."""
    run_program("add_one", "1", "4", folder=tmp_path / "run", count=2)
    run_program("add_one", "2", "2", folder=tmp_path / "run", count=4)
    assert_one_device_reads(tmp_path / "run", step=2)


CHILD = textwrap.dedent(
    """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from deberta_jax.train.checkpoints.checkpointer import Checkpointer

    state = {f"layer_{i}": jnp.zeros((512, 512)) for i in range(8)}
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    next_step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpointer = Checkpointer(sys.argv[1], keep=2, identity={})
    restored = checkpointer.restore(template)
    step = 0
    if restored is not None:
        state, step = restored.state, restored.step
        assert restored.data == {"next_index": step}, restored.data
        for leaf in jax.tree.leaves(state):
            assert (np.asarray(leaf) == step).all()
    print("restored", step, flush=True)
    for step in range(step + 1, step + 1000):
        state = next_step(state)
        checkpointer.save(step, state, {"next_index": step})
        print("saving", step, flush=True)
    """
)


def run_until_killed(folder: Path, *, saves: int) -> tuple[int, int]:
    """Runs CHILD and kills it during a save, after so many others.

    Returns:
      The step that it restored and the last step that it began to save.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert child.stdout is not None
    assert child.stderr is not None
    first = child.stdout.readline().split()
    assert first[:1] == ["restored"], child.stderr.read()
    for line in child.stdout:
        if int(line.split()[1]) >= int(first[1]) + saves:
            break
    wait_until(lambda: any(folder.glob("*.orbax-checkpoint-tmp")), seconds=120, purpose="a save")
    child.send_signal(signal.SIGKILL)
    last = [line.split()[1] for line in child.stdout.readlines() if line.endswith("\n")]
    assert child.wait() == -signal.SIGKILL
    assert child.stderr.read() == ""
    child.stdout.close()
    child.stderr.close()
    return int(first[1]), int(last[-1]) if last else int(first[1]) + saves


@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_during_a_save(rounds: int, tmp_path: Path) -> None:
    folder, previous_last = tmp_path / "run", 0
    for number in range(rounds):
        restored, last = run_until_killed(folder, saves=2 + number)
        # A save begins only when the one before is on disk, so at most the last two are lost.
        assert previous_last - 2 <= restored <= previous_last + 1
        previous_last = last
    state = {f"layer_{i}": jnp.zeros((512, 512)) for i in range(8)}
    with Checkpointer(folder, keep=2, identity={}) as checkpointer:
        restored = checkpointer.restore(abstract(state))
        assert not list(folder.glob("*.orbax-checkpoint-tmp"))
    assert restored is not None
    assert previous_last - 2 <= restored.step <= previous_last + 1
    for leaf in jax.tree.leaves(restored.state):
        assert (np.asarray(leaf) == restored.step).all()
