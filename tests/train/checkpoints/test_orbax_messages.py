"""What Orbax logs is suppressed while a checkpointer is open, and nothing is changed otherwise."""

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deberta_jax.orbax_messages import OrbaxMessages

LOGGERS = ("absl", "asyncio")


def global_state() -> tuple[object, ...]:
    """Returns what a checkpointer changes while it is open."""
    return (sys.unraisablehook, *(tuple(logging.getLogger(name).filters) for name in LOGGERS))


def test_filters_are_removed_with_the_last_checkpointer(open_run, tmp_path: Path) -> None:
    before = global_state()
    first, second = open_run(tmp_path / "first"), open_run(tmp_path / "second")
    changed = global_state()
    assert all(was != now for was, now in zip(before, changed, strict=True))
    first.close()
    first.close()
    assert global_state() == changed
    second.close()
    assert global_state() == before


def test_filters_are_removed_if_the_folder_cannot_be_opened_or_the_block_fails(open_run, tmp_path: Path) -> None:
    before = global_state()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not a directory"):
        open_run(tmp_path / "file")
    assert global_state() == before
    with pytest.raises(KeyError), open_run():
        raise KeyError("a failure of training")
    assert global_state() == before


def test_a_hook_of_others_stays(monkeypatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    messages, hook = OrbaxMessages(), lambda _: None
    messages.suppress()
    sys.unraisablehook = hook
    messages.restore()
    assert sys.unraisablehook is hook


def test_only_messages_of_orbax_are_suppressed(caplog) -> None:
    messages = OrbaxMessages()
    messages.suppress()
    try:
        logging.getLogger("absl").error("a failure of grain")
        logging.getLogger("asyncio").error("task of /site-packages/orbax/checkpoint/x.py was never awaited")
    finally:
        messages.restore()
    assert caplog.messages == ["a failure of grain"]


NOISY = textwrap.dedent(
    """
    import gc, logging, sys
    from pathlib import Path
    import jax, jax.numpy as jnp
    import orbax.checkpoint

    def global_state():
        return sys.unraisablehook, *(tuple(logging.getLogger(name).filters) for name in ("absl", "asyncio"))

    before_import = global_state()
    from deberta_jax.train.checkpoints.checkpointer import Checkpointer
    assert global_state() == before_import

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    folder = Path(sys.argv[1])
    state = {f"kernel_{i}": jnp.ones((8, 8)) for i in range(9)}
    with Checkpointer(folder, keep=2, identity={}) as checkpointer:
        checkpointer.save(1, state, {})
        checkpointer.save(2, state, {})
    (folder / "1" / "_CHECKPOINT_METADATA").write_text("{")
    (folder / "2" / "state" / "manifest.ocdbt").unlink()
    with Checkpointer(folder, keep=2, identity={}, patience=0) as checkpointer:
        checkpointer.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state))
        checkpointer._manager._checkpointer._handler.finalize = fail  # the next write fails in the background
        checkpointer.save(2, state, {})
        try:
            checkpointer.wait()
        except ValueError:
            pass
    gc.collect()
    assert global_state() == before_import
    """
)


def test_a_failure_prints_one_line_and_an_import_changes_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", NOISY, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"the checkpoint of step 2 in {tmp_path / 'run'} is damaged (")
