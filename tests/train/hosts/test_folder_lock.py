"""Two runs in one folder: the second is refused, unless the first is dead."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.hosts import folder_lock
from deberta_jax.train.hosts.folder_lock import lock_folder

from ...support.cluster import wait_until

HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom deberta_jax.train.hosts.folder_lock import lock_folder\n"
    "with lock_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
)


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_and_the_process_named(tmp_path: Path, holder: subprocess.Popen) -> None:
    with (
        pytest.raises(UserError, match=rf"is in use by process {holder.pid} on .*give another --output"),
        lock_folder(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path):  # the lock of a killed process does not count
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def write_owner(folder: Path, *, seconds_ago: float) -> Path:
    path = folder / "run.lock"
    path.write_text(json.dumps({"host": "another-machine", "process": 7, "started": "today"}))
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_another_machine_that_is_silent_is_taken_over(tmp_path: Path) -> None:
    write_owner(tmp_path, seconds_ago=61)
    with lock_folder(tmp_path):
        pass


def test_another_machine_is_waited_for_and_refused_if_it_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    path = write_owner(tmp_path, seconds_ago=5)
    monkeypatch.setattr(folder_lock.time, "sleep", lambda _: os.utime(path))
    with pytest.raises(UserError, match="in use by process 7 on another-machine"), lock_folder(tmp_path):
        pass
    assert "Waiting 60 s" in capsys.readouterr().out
    monkeypatch.setattr(folder_lock.time, "sleep", lambda _: os.utime(path, (time.time() - 65,) * 2))
    with lock_folder(tmp_path):  # it went silent meanwhile
        pass


def test_the_owner_touches_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folder_lock, "_TOUCH_SECONDS", 0.01)
    with lock_folder(tmp_path):
        os.utime(tmp_path / "run.lock", (0, 0))
        wait_until(lambda: (tmp_path / "run.lock").stat().st_mtime > 1e9, seconds=60, purpose="the thread")


@pytest.mark.parametrize("content", ["", "not JSON", "[]", "{}"])
def test_a_damaged_lock_file_is_no_lock(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.lock").write_text(content)
    with lock_folder(tmp_path):
        pass
