"""Checkpoints: what is saved is what comes back, whatever is killed, filled up or damaged in between."""

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from deberta_jax.train.checkpoints import manifest
from deberta_jax.train.checkpoints.checkpointer import Checkpointer, CheckpointError
from deberta_jax.train.checkpoints.checksums import checksum

IDENTITY = {
    "model": {"num_hidden_layers": 6, "conv_act": None},
    "tokenizer": "ab12",
    "optimizer": {"betas": (0.9, 0.98)},
}


def make_state(value: int, *, size: int = 300):
    """Every leaf holds `value`, in each dtype that a training state has, inside optax's own containers."""
    params = {
        "dense": {"kernel": jnp.full((size, 40), value, jnp.float32), "bias": jnp.full((7,), value, jnp.bfloat16)}
    }
    moments = optax.adamw(1e-3).init(params)
    moments = jax.tree.map(lambda x: jnp.full_like(x, value), moments)
    return {"params": params, "moments": moments, "step": jnp.int32(value), "rng": jnp.full((2,), value, jnp.uint32)}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def said():
    return []


@pytest.fixture
def make(tmp_path, said):
    """Opens the same folder again and again, without patience; closes what a test leaves open."""
    opened = []

    def open_folder(*, folder=None, keep=3, identity=IDENTITY):
        folder = folder or tmp_path / "run"
        opened.append(Checkpointer(folder, keep=keep, identity=identity, log=said.append, patience=0))
        return opened[-1]

    yield open_folder
    for checkpointer in opened:
        checkpointer.close()


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_stored_value(step_folder: Path) -> None:
    """Writes another value of the same shape into the array files, which Orbax restores without a word."""
    shutil.rmtree(step_folder / "state")
    state = make_state(1)
    state["params"]["dense"]["kernel"] = state["params"]["dense"]["kernel"].at[17, 3].set(1 + 2**-20)
    with ocp.StandardCheckpointer() as writer:
        writer.save(step_folder / "state", state)


def test_round_trip_keeps_values_dtypes_containers_and_data(make, said):
    state = make_state(3)
    state["params"]["dense"]["kernel"] = jax.random.normal(jax.random.key(0), (300, 40))
    with make() as first:
        assert first.latest_step() is None
        assert first.restore(abstract(state)) is None
        first.save(4, state, {"next_index": 12, "epoch": {"seed": 7}})
        assert first.latest_step() == 4
    restored = make().restore(abstract(state))
    assert restored is not None
    assert restored.step == 4
    assert restored.data == {"next_index": 12, "epoch": {"seed": 7}}
    chex.assert_trees_all_equal(restored.state, state)
    chex.assert_trees_all_equal_dtypes(restored.state, state)
    assert said == []


def test_dtypes_and_shardings_come_from_the_abstract_state(make):
    state = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
    with make() as first:
        first.save(1, state, {})
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    restored = make().restore({"kernel": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=sharding)})
    assert restored.state["kernel"].sharding == sharding
    chex.assert_trees_all_equal(restored.state["kernel"], state["kernel"].astype(jnp.bfloat16))


def test_only_the_newest_are_kept(make, tmp_path):
    with make(keep=2) as checkpointer:
        for step in (10, 20, 30, 40):
            checkpointer.save(step, make_state(step), {})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["30", "40"]


def test_the_state_may_be_donated_right_after_save(make):
    """The writer works while later steps overwrite the donated buffers; it has to write the values of the call."""

    @functools.partial(jax.jit, donate_argnums=0)
    def next_step(state):
        return jax.tree.map(lambda x: x + jnp.ones_like(x), state)

    numpy_made = jax.device_put({"aliased": np.zeros((1024, 512), np.float32)})
    state = {
        **numpy_made,
        "wide": jnp.zeros((1024, 2048)),
        "half": jnp.zeros((512, 512), jnp.bfloat16),
        "n": jnp.int32(0),
    }
    with make(keep=10) as checkpointer:
        for step in range(4):
            checkpointer.save(10 * step, state, {})
            for _ in range(10):
                state = next_step(state)
    template = abstract(state)
    folder = checkpointer._manager.directory
    for step in range(3, -1, -1):
        restored = make(keep=10).restore(template)
        assert restored.step == 10 * step
        chex.assert_trees_all_equal(restored.state, jax.tree.map(lambda x: jnp.full_like(x, 10 * step), restored.state))  # noqa: B023
        shutil.rmtree(folder / str(10 * step))


DAMAGES = {
    "a flipped value": flip_a_stored_value,
    "array data truncated": lambda step: os.truncate(step / "state/manifest.ocdbt", 10),
    "array data missing": lambda step: (step / "state/manifest.ocdbt").unlink(),
    "largest file truncated": lambda step: os.truncate(largest_file(step), largest_file(step).stat().st_size // 2),
    "meta truncated": lambda step: os.truncate(step / "meta/metadata", 20),
    "meta missing": lambda step: shutil.rmtree(step / "meta"),
    "meta altered": lambda step: (step / "meta/metadata").write_text(
        (step / "meta/metadata").read_text().replace("next_index", "next_indey")
    ),
    "half deleted": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with steps 1 (every leaf 0) and 2 (every leaf 1), copied by the tests that damage it."""
    folder = tmp_path_factory.mktemp("two_steps") / "run"
    with Checkpointer(folder, keep=3, identity=IDENTITY) as checkpointer:
        checkpointer.save(1, make_state(0), {"next_index": 1})
        checkpointer.save(2, make_state(1), {"next_index": 2})
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_set_aside_and_the_one_before_used(damage, make, said, two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    DAMAGES[damage](folder / "2")
    checkpointer = make()
    restored = checkpointer.restore(abstract(make_state(0)))
    assert (restored.step, restored.data) == (1, {"next_index": 1})
    chex.assert_trees_all_equal(restored.state, make_state(0))
    assert len(said) == 1
    assert re.search(r"step 2 .* is damaged \(.+\): resuming from step 1 .* kept as 2\.damaged$", said[0])
    assert (folder / "2.damaged").is_dir()
    # The bookkeeping knows: the number is free again, and holds the new values.
    assert checkpointer.latest_step() == 1
    checkpointer.save(2, make_state(5), {})
    checkpointer.close()
    assert make().restore(abstract(make_state(0))).state["step"] == 5
    assert (folder / "2.damaged").is_dir()


def test_a_second_damage_of_the_same_step_keeps_both(make, said, two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    (folder / "2.damaged").mkdir()
    (folder / "2/meta/metadata").unlink()
    assert make().restore(abstract(make_state(0))).step == 1
    assert {path.name for path in folder.iterdir()} == {"1", "2.damaged", "2.damaged-2"}


def test_all_damaged_is_an_error_and_leaves_everything_in_place(make, two_steps, tmp_path):
    """Were they moved aside, the next start would find no checkpoint and begin again from nothing."""
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    for step in ("1", "2"):
        (folder / step / "meta/metadata").unlink()
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"every checkpoint .* is damaged \(step 2: .*; step 1: .*another --output"
        ):
            make().restore(abstract(make_state(0)))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_another_configuration_is_refused_before_any_array_is_read(make, two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/2/state")
    other = {"model": {"num_hidden_layers": 12, "conv_act": "gelu"}, "tokenizer": "ab12", "seed": 1}
    with pytest.raises(CheckpointError) as error:
        make(identity=other).restore(abstract(make_state(0)))
    message = str(error.value)
    assert "model.num_hidden_layers is 6 there, 12 here, model.conv_act is null there" in message
    assert "optimizer is {" in message
    assert "and 1 more" in message
    assert "use another --output, or the same settings" in message
    assert (tmp_path / "run/2").is_dir()


def test_another_state_tree_is_refused_and_not_taken_for_damage(make, two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    state = make_state(0, size=301)
    del state["rng"]
    with pytest.raises(CheckpointError, match=r"params/dense/kernel is \[300, 40\] there, \[301, 40\] here"):
        make().restore(abstract(state))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["1", "2"]


def test_other_library_versions_are_only_reported(make, said, two_steps, tmp_path, monkeypatch):
    shutil.copytree(two_steps, tmp_path / "run")
    monkeypatch.setattr(manifest, "versions", lambda: {"jax": "99.0"})
    assert make().restore(abstract(make_state(0))).step == 2
    assert len(said) == 1
    assert re.search(r'jax is ".+" there, "99\.0" here', said[0])


def test_bad_use_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="keep is 0; at least 1"):
        make(keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot keep checkpoints in .*file: not a directory"):
        make(folder=tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot keep checkpoints in .*file/run: .*Not a directory"):
        make(folder=tmp_path / "file" / "run")
    checkpointer = make()
    checkpointer.save(1, make_state(1), {})
    with pytest.raises(CheckpointError, match="already holds a checkpoint of step 1"):
        checkpointer.save(1, make_state(1), {})
    with pytest.raises(TypeError, match="no sharding for moments"):
        checkpointer.restore(jax.eval_shape(lambda: make_state(1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint32, jnp.bool_])
def test_checksum_sees_one_bit_and_the_order(dtype):
    values = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 6)), dtype)
    before = checksum(values)
    assert checksum(values + 0) == before
    assert checksum(values[::-1]) != before
    assert checksum(values.reshape(6, 5)) == before  # row-major order, whatever the shape
    flipped = np.asarray(values).copy()
    flipped.view(np.uint8).reshape(-1)[0] ^= 1
    assert checksum(flipped) != before


def test_a_full_disk_is_reported_and_the_last_good_step_stays(make, tmp_path):
    """On a file system of 3 MB where mounting is allowed; elsewhere the writer's own error is imitated below."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        noise = {"kernel": jax.random.normal(jax.random.key(0), (300_000,))}  # 1.2 MB that does not compress
        checkpointer = make(folder=disk / "run")
        checkpointer.save(1, noise, {})
        checkpointer.save(2, noise, {})
        checkpointer.save(3, noise, {})  # asynchronous: the failure shows at the next call
        with pytest.raises(
            CheckpointError, match=r"disk/run: the disk is full; the last good one is step 2; free some"
        ):
            checkpointer.save(4, noise, {})
        assert checkpointer.latest_step() == 2
        shutil.rmtree(disk / "run/1")
        shutil.rmtree(disk / "run/3.orbax-checkpoint-tmp", ignore_errors=True)
        checkpointer.save(4, noise, {})  # room again: the same object goes on
        checkpointer.close()
        assert make(folder=disk / "run").restore(abstract(noise)).step == 4
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (OSError(28, "No space left on device"), "the disk is full; the last good one is step 1"),
        (ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device"), "the disk is full"),
        (OSError(5, "Input/output error"), "Input/output error; the last good one is step 1; see that the folder"),
    ],
)
def test_a_failing_write_surfaces_at_the_next_wait(make, monkeypatch, failure, text):
    checkpointer = make()
    checkpointer.save(1, make_state(1), {})
    checkpointer.wait()

    def fail(*_, **__):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._manager._checkpointer._handler, "finalize", fail)
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(CheckpointError, match=re.escape(text)):
            checkpointer.wait()
    checkpointer.close()
    assert make().restore(abstract(make_state(0))).step == 1


CHILD = textwrap.dedent(
    """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from deberta_jax.train.checkpointing import Checkpointer

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


def run_until_killed(folder: Path, *, pause: float, wait_for_unfinished: bool) -> tuple[int, int]:
    """Runs CHILD and kills it; returns the step it restored and the last it began to save."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    first = child.stdout.readline().split()
    assert first[:1] == ["restored"], child.stderr.read()
    for line in child.stdout:  # let it reach its third save of this life
        if int(line.split()[1]) >= int(first[1]) + 3:
            break
    time.sleep(pause)
    deadline = time.monotonic() + 10
    while wait_for_unfinished and not list(folder.glob("*.orbax-checkpoint-tmp")) and time.monotonic() < deadline:
        pass
    child.send_signal(signal.SIGKILL)
    last = [line.split()[1] for line in child.stdout.readlines() if line.endswith("\n")]
    assert child.wait() == -signal.SIGKILL
    assert child.stderr.read() == ""  # nothing but our own lines, and there was nothing to say
    child.stdout.close()
    child.stderr.close()
    return int(first[1]), int(last[-1]) if last else int(first[1]) + 3


def check_killed_rounds(folder: Path, *, rounds: int) -> None:
    chance = np.random.default_rng(0)
    previous_last = 0
    for number in range(rounds):
        restored, last = run_until_killed(folder, pause=chance.uniform(0, 0.3), wait_for_unfinished=number % 2 == 0)
        # A save begins only after the one before is on disk, so at most the last two are lost.
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


def test_kill_during_a_save(tmp_path):
    check_killed_rounds(tmp_path / "run", rounds=1)


@pytest.mark.slow
def test_kill_during_saves_again_and_again(tmp_path):
    check_killed_rounds(tmp_path / "run", rounds=5)


NOISY = textwrap.dedent(
    """
    import gc, sys
    from pathlib import Path
    import jax, jax.numpy as jnp
    from deberta_jax.train.checkpointing import Checkpointer

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
    """
)


def test_only_our_own_line_is_printed(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", NOISY, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"the checkpoint of step 2 in {tmp_path / 'run'} is damaged (")


PROCESS = textwrap.dedent(
    """
    import os, sys
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]), initialization_timeout=60)
    import jax.numpy as jnp, numpy as np
    from pathlib import Path
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from deberta_jax.train.checkpointing import Checkpointer

    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def sharded(value, spec):
        values = np.arange(64, dtype=np.float32).reshape(8, 8) + value
        return jax.make_array_from_callback((8, 8), NamedSharding(mesh, spec), lambda index: values[index])

    def make_state(value):
        specs = {"rows": PartitionSpec("data"), "both": PartitionSpec("data", "fsdp"), "copies": PartitionSpec()}
        return {name: sharded(value, spec) for name, spec in specs.items()}

    folder = Path(sys.argv[1])
    with Checkpointer(folder, keep=3, identity={}) as checkpointer:
        checkpointer.save(1, make_state(1), {"next_index": 1})
        checkpointer.save(2, make_state(2), {"next_index": 2})
    if jax.process_index() == 1:
        (folder / "2/state/manifest.ocdbt").unlink()
    multihost_utils.sync_global_devices("damaged")
    with Checkpointer(folder, keep=3, identity={}) as checkpointer:
        state = make_state(0)
        restored = checkpointer.restore(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        )
        assert restored.step == 1
        assert restored.state["both"].sharding == state["both"].sharding
        assert checkpointer.latest_step() == 1
        checkpointer.save(2, make_state(5), {"next_index": 5})
    """
)


@pytest.mark.slow
def test_two_processes_agree_and_one_process_reads_what_they_wrote(tmp_path, make):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path / "run"), str(port), str(index)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    assert ["is damaged" in error for error in errors] == [True, False]
    # Checksums do not depend on the mesh: they hold for one device too.
    values = jnp.arange(64, dtype=jnp.float32).reshape(8, 8) + 5
    state = dict.fromkeys(("rows", "both", "copies"), values)
    restored = make(identity={}).restore(abstract(state))
    assert (restored.step, restored.data) == (2, {"next_index": 5})
    chex.assert_trees_all_equal(restored.state, state)
