"""Local copies of stores, and runs that are copied while they go on."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deberta_jax import mirrors, run_mirror, store_lock, stores
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.mirrors import Mirror, fetch, local_copy, local_path
from deberta_jax.run_mirror import RunMirror, is_needed_from_run
from deberta_jax.store_lock import StoreLock
from deberta_jax.terminal import message_text, with_addresses


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    stores.remove_folder(address)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the files that were fetched."""
    done: list[str] = []
    fetch_file = stores.fetch_file

    def note(address: str, path: Path) -> None:
        done.append(address)
        fetch_file(address, path)

    monkeypatch.setattr(stores, "fetch_file", note)
    return done


def test_a_folder_is_fetched_once_and_again_where_it_changed(bucket: str, fetched: list[str]):
    stores.write(f"{bucket}/m/a", b"one")
    stores.write(f"{bucket}/m/sub/b", b"two")
    folder = fetch(f"{bucket}/m")
    assert (folder / "a").read_bytes() == b"one"
    assert (folder / "sub/b").read_bytes() == b"two"
    assert len(fetched) == 2
    fetch(f"{bucket}/m")
    assert len(fetched) == 2
    stores.write(f"{bucket}/m/a", b"new")
    stores.remove(f"{bucket}/m/sub/b")
    (folder / "kept").touch()
    assert (fetch(f"{bucket}/m") / "a").read_bytes() == b"new"
    assert fetched[2:] == [f"{bucket}/m/a"]
    assert not (folder / "sub/b").exists()
    (folder / "a").write_bytes(b"bad")  # of a copy that was damaged
    assert (fetch(f"{bucket}/m") / "a").read_bytes() == b"new"


def test_a_file_is_fetched_and_named_by_its_address(bucket: str):
    stores.write(f"{bucket}/x.txt", b"text")
    path = fetch(f"{bucket}/x.txt")
    assert path.read_bytes() == b"text"
    assert message_text(f"{path} is short") == f"{bucket}/x.txt is short"
    assert with_addresses(str(path)) == f"{bucket}/x.txt"
    assert with_addresses("/x.txt") == "/x.txt"
    assert local_copy(path) == path
    with pytest.raises(MissingFileError, match=f"{bucket}/none: no such file or folder"):
        fetch(f"{bucket}/none")


def test_a_transfer_that_is_cut_is_no_copy(bucket: str, monkeypatch: pytest.MonkeyPatch):
    stores.write(f"{bucket}/m/a", b"whole")
    monkeypatch.setattr(stores, "fetch_file", lambda address, path: path.write_bytes(b"who"))
    with pytest.raises(UserError, match="has 3 bytes instead of 5"):
        fetch(f"{bucket}/m")
    assert not (local_path(f"{bucket}/m") / "a").exists()


def test_a_full_disk_is_named_before_anything_is_fetched(
    bucket: str, fetched: list[str], monkeypatch: pytest.MonkeyPatch
):
    stores.write(f"{bucket}/m/a", b"whole")
    monkeypatch.setattr(mirrors, "_RESERVE", 1 << 60)
    with pytest.raises(UserError, match="set DEBERTA_JAX_CACHE to a folder on a larger disk"):
        fetch(f"{bucket}/m")
    assert not fetched


def test_what_completes_a_folder_is_written_last_and_removed_first(bucket: str, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    put_file = stores.put_file

    def note(path: Path, address: str) -> stores.Entry:
        written.append(path.name)
        return put_file(path, address)

    monkeypatch.setattr(stores, "put_file", note)
    mirror = Mirror(f"{bucket}/m")
    mirror.path.mkdir(parents=True)
    for name in ("model.sha256", "config.json", "a", "z", ".x.tmp", "run.lock"):
        (mirror.path / name).write_text(name)
    mirror.push()
    assert written[2:] == ["config.json", "model.sha256"]
    assert sorted(stores.entries(f"{bucket}/m")) == ["a", "config.json", "model.sha256", "z"]
    mirror.push()
    assert len(written) == 4
    removed: list[str] = []
    monkeypatch.setattr(stores, "remove", removed.append)
    (mirror.path / "a").unlink()
    (mirror.path / "model.sha256").unlink()
    mirror.push()
    assert removed == [f"{bucket}/m/model.sha256", f"{bucket}/m/a"]


def test_changes_that_could_not_be_written_are_kept_unless_the_store_changed(bucket: str):
    mirror = Mirror(f"{bucket}/m")
    mirror.path.mkdir(parents=True)
    (mirror.path / "a").write_text("1")
    (mirror.path / "b").write_text("1")
    mirror.push()
    (mirror.path / "a").write_text("2")
    (mirror.path / "b").write_text("2")
    (mirror.path / "new").write_text("2")
    stores.write(f"{bucket}/m/b", b"of another machine")
    again = Mirror(f"{bucket}/m")
    again.pull(keep_changes=True)
    assert [(again.path / name).read_text() for name in ("a", "b", "new")] == ["2", "of another machine", "2"]


def _save(run: Path, step: int, content: str) -> None:
    folder = run / "checkpoints" / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "array").write_text(content)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")


def _other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "other"))


def test_a_run_continues_on_another_machine(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with RunMirror(f"{bucket}/run").following():
        run = local_path(f"{bucket}/run")
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text("line")
        _save(run, 5, "five")
        _save(run, 10, "ten")
        (run / "checkpoints" / "15.orbax-checkpoint-tmp").mkdir()
        (run / "checkpoints" / "15.orbax-checkpoint-tmp" / "array").touch()
    names = stores.entries(f"{bucket}/run")
    assert {"checkpoints/5/_COMPLETE", "checkpoints/10/_COMPLETE", "metrics.jsonl"} <= names.keys()
    assert not any("tmp" in name for name in names)
    _other_machine(monkeypatch, tmp_path)
    with RunMirror(f"{bucket}/run").following():
        run = local_path(f"{bucket}/run")
        assert (run / "metrics.jsonl").read_text() == "line"
        assert (run / "checkpoints/10/state/array").read_text() == "ten"
        assert not (run / "checkpoints/5").exists()
        assert not (run / "checkpoints/10/_COMPLETE").exists()
        _save(run, 15, "fifteen")
    assert "checkpoints/15/_COMPLETE" in stores.entries(f"{bucket}/run")


def test_a_step_without_its_last_file_does_not_count_and_a_damaged_one_is_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with RunMirror(f"{bucket}/run").following():
        for step in (5, 10, 15):
            _save(local_path(f"{bucket}/run"), step, str(step))
    stores.remove(f"{bucket}/run/checkpoints/15/_COMPLETE")
    stores.write(f"{bucket}/run/checkpoints/10/state/array", b"11")
    _other_machine(monkeypatch, tmp_path)
    with RunMirror(f"{bucket}/run").following():
        assert [path.name for path in (local_path(f"{bucket}/run") / "checkpoints").iterdir()] == ["5"]
    assert "checkpoints/10/ is damaged (state/array has another digest)" in caplog.text
    stores.write(f"{bucket}/run/checkpoints/5/state/array", b"6")
    with (
        pytest.raises(UserError, match=r"every checkpoint in .*/run/checkpoints is damaged"),
        RunMirror(f"{bucket}/run").following(),
    ):
        pass


def test_old_steps_are_removed_from_the_store_once_a_newer_one_is_there(bucket: str):
    with RunMirror(f"{bucket}/run").following():
        _save(local_path(f"{bucket}/run"), 5, "five")
    with RunMirror(f"{bucket}/run").following():
        run = local_path(f"{bucket}/run")
        (run / "checkpoints/5").rename(run / "checkpoints/gone")
        _save(run, 10, "ten")
    steps = {name.split("/")[1] for name in stores.entries(f"{bucket}/run")}
    assert steps == {"10"}


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_writes_while_it_goes_on_and_after_an_outage(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(run_mirror, "_STEPS_SECONDS", 0.02)
    put_file, down = stores.put_file, [True]

    def put_or_fail(path: Path, address: str) -> stores.Entry:
        if down[0]:
            raise stores.StoreError("the store has not answered")
        return put_file(path, address)

    monkeypatch.setattr(stores, "put_file", put_or_fail)
    with RunMirror(f"{bucket}/run").following():
        _save(local_path(f"{bucket}/run"), 5, "five")
        _wait_until(lambda: "the store has not answered. Training goes on" in caplog.text)
        assert list(stores.entries(f"{bucket}/run")) == ["run.lock"]
        down[0] = False
        _wait_until(lambda: "checkpoints/5/_COMPLETE" in stores.entries(f"{bucket}/run"))
    assert len(caplog.records) == 1


def test_an_error_of_the_run_comes_before_one_of_the_store(bucket: str, monkeypatch: pytest.MonkeyPatch):
    run = local_path(f"{bucket}/run")
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("line")

    def refuse(path: Path, address: str) -> stores.Entry:
        raise stores.StoreError("the store has not answered")

    with pytest.raises(ZeroDivisionError), RunMirror(f"{bucket}/run").following():
        raise ZeroDivisionError
    (run / "metrics.jsonl").write_text("line 2")
    monkeypatch.setattr(stores, "put_file", refuse)
    with pytest.raises(ZeroDivisionError), RunMirror(f"{bucket}/run").following():
        raise ZeroDivisionError
    assert list(stores.entries(f"{bucket}/run")) == ["metrics.jsonl"]


def test_models_of_a_run_need_no_arrays_of_checkpoints():
    names = [
        "model/params/d/x",
        "checkpoints/5/meta/metadata",
        "checkpoints/5/state/d/x",
        "seed-1/checkpoints/5/state/x",
    ]
    assert [name for name in names if is_needed_from_run(name)] == names[:2]


def test_one_process_writes_a_run(bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    waited: list[float] = []
    other = StoreLock(f"{bucket}/run")
    other.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(store_lock.time, "sleep", lambda seconds: [waited.append(seconds), other._write()])
        with pytest.raises(UserError, match=rf"{bucket}/run is used by process \d+ on .*; wait for it, stop it"):
            StoreLock(f"{bucket}/run").acquire()
    assert waited == [70.0]
    assert "Waiting 70 s, in case it has ended" in capsys.readouterr().err

    monkeypatch.setattr(store_lock.time, "sleep", waited.append)
    mine = StoreLock(f"{bucket}/run")
    mine.acquire()  # the other one was silent
    mine.keep()
    other.keep()
    monkeypatch.setattr(store_lock, "_TURN_SECONDS", 0.0)
    mine.keep()
    with pytest.raises(UserError, match="which began after this one; this one no longer writes there"):
        other.keep()
    other.release()
    assert stores.names(f"{bucket}/run") == ["run.lock"]
    mine.release()
    assert not stores.exists(f"{bucket}/run")


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(bucket: str, monkeypatch: pytest.MonkeyPatch):
    other = StoreLock(f"{bucket}/run")
    other._owner["process"] = 2**22 + 1  # above the largest number of a process
    other.acquire()
    monkeypatch.setattr(store_lock.time, "sleep", lambda seconds: pytest.fail("it waited"))
    StoreLock(f"{bucket}/run").acquire()
