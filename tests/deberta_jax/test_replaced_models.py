"""Saving over another model: by killed processes, on full disks, in folders with odd names, by several processes."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax import Tokenizer, UserError, load_pretrained, orbax_folder, save_pretrained
from deberta_jax.atomic_folder import _host

from ..support.cluster import cluster, wait_for_success
from ..support.model_worker import model, number_of, tokenizer
from ..support.predictor import random_predictor
from ..support.small_disk import mounted
from ..support.small_models import SMALL

WORKER = [sys.executable, "-m", "tests.support.model_worker"]


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "results.json").write_text("{}")
    for _ in range(8):
        with subprocess.Popen([*WORKER, "loop", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            printed = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
            saved = [printed, *map(int, process.stdout.read().split())][-1]
        found = number_of(tmp_path)
        assert found in (saved, 3 - saved)
        assert (tmp_path / "spm.model").read_bytes() == b"%d" % found
    save_pretrained(tmp_path, *model(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("config.json", "model.sha256", "params", "results.json", "spm.model", "tokenizer_config.json")
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that Orbax abandons
def test_a_reader_finds_a_whole_model_while_it_is_replaced(tmp_path: Path) -> None:
    with subprocess.Popen([*WORKER, "slow_loop", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found, end = set(), time.monotonic() + 60
        try:
            while found != {1, 2}:
                found.add(number_of(tmp_path))
                assert time.monotonic() < end
        finally:
            process.kill()
            gc.collect()  # reads that were abandoned complain when they are collected


def test_a_save_that_was_killed_between_two_moves_is_read_through(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_pretrained(tmp_path / "model", *model(1), tokenizer=tokenizer(1))
    save_pretrained(tmp_path / "new", *model(2), tokenizer=tokenizer(2))
    # As `Staging.commit` leaves it when the process is killed after it has moved params/.
    name = f".save.{_host()}.{2**22 + 1}.0123456789ab"
    (tmp_path / "new").rename(tmp_path / "model" / f"{name}.tmp")
    (tmp_path / "model" / f"{name}.old").mkdir()
    for entry in ("config.json", "params", "spm.model"):
        (tmp_path / "model" / entry).rename(tmp_path / "model" / f"{name}.old" / entry)
        (tmp_path / "model" / f"{name}.tmp" / entry).rename(tmp_path / "model" / entry)
    assert number_of(tmp_path / "model") == 1
    assert f"a save was interrupted; this is the previous model, in {tmp_path}/model/{name}.old" in caplog.text
    with pytest.raises(UserError, match=r"interrupted while it replaced the tokenizer; move the files in .*\.old back"):
        Tokenizer.from_folder(tmp_path / "model")
    with pytest.raises(ValueError, match="TypeHandler lookup failed"):
        save_pretrained(tmp_path / "model", SMALL, {"deberta": {"x": "not an array"}})
    assert "took back what an interrupted save had set aside" in caplog.text
    assert number_of(tmp_path / "model") == 1
    assert (tmp_path / "model" / "spm.model").read_bytes() == b"1"


def test_a_first_save_that_was_killed_is_named(tmp_path: Path) -> None:
    (tmp_path / ".save.elsewhere.1.0123456789ab.tmp").mkdir()
    os.utime(tmp_path / ".save.elsewhere.1.0123456789ab.tmp", (1, 1))
    with pytest.raises(UserError, match=r"holds: \.save.* \(\.save.*: what an interrupted save has left"):
        load_pretrained(tmp_path)


def test_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", megabytes=1):
        folder = tmp_path / "disk" / "model"
        save_pretrained(folder, *model(1))
        config, params = model(2)
        params["mine"] = {"x": np.random.default_rng(0).normal(size=(600, 600)).astype(np.float32)}
        with pytest.raises(OSError, match=r"disk/model was not saved: No space left on device; an earlier model"):
            save_pretrained(folder, config, params)
        assert number_of(folder) == 1
        assert not list(folder.glob(".save*"))
        save_pretrained(folder, *model(2))
        assert number_of(folder) == 2
        save_pretrained(tmp_path / "disk", *model(1))  # the mount point itself
        assert number_of(tmp_path / "disk") == 1


@pytest.mark.parametrize("name", ["exp[1]", "a]b", "what?", "all*", "ä b", "%2F#x", "{a,b}", "-x", "~"])
def test_folders_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "model"
    for number in (1, 2):
        save_pretrained(folder, *model(number))
        assert number_of(folder) == number
    folder.parent.rename(tmp_path / "renamed")
    assert number_of(tmp_path / "renamed" / "model") == 2


def test_what_cannot_be_read_again_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config, params = model(1)
    with pytest.raises(UserError, match="whose name has a backslash; choose another folder"):
        save_pretrained(tmp_path / "back\\slash" / "model", config, params)
    with pytest.raises(UserError, match=r"but no 'deberta'; an encoder alone is saved as \{'deberta': parameters\}"):
        save_pretrained(tmp_path / "model", config, params["deberta"])
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_cannot_be_read_back_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(tmp_path, *model(1))
    monkeypatch.setattr(orbax_folder, "write_folder", lambda path, params: path.mkdir())
    with pytest.raises(OSError, match=r"was not saved: .*damaged or incomplete.*; an earlier model in it is unchanged"):
        save_pretrained(tmp_path, *model(2))
    assert number_of(tmp_path) == 1


def test_links_are_followed_to_the_folder_but_not_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(tmp_path / "base", *model(1))
    (tmp_path / "real").mkdir()
    for name in ("params", "config.json"):
        (tmp_path / "real" / name).symlink_to(tmp_path / "base" / name)
    (tmp_path / "link").symlink_to("real")
    save_pretrained(tmp_path / "link", *model(2))
    assert number_of(tmp_path / "real") == 2
    assert number_of(tmp_path / "base") == 1
    monkeypatch.chdir(tmp_path / "real")
    save_pretrained(".", *model(3))
    assert number_of(tmp_path / "link") == 3


def test_the_tokenizer_is_replaced_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "vocab.txt").write_text("of another tokenizer")
    predictor = random_predictor()
    save_pretrained(tmp_path, predictor.config, predictor.params, tokenizer=predictor.tokenizer.files())
    assert Tokenizer.from_folder(tmp_path).fingerprint == predictor.tokenizer.fingerprint
    assert not (tmp_path / "vocab.txt").exists()
    assert (tmp_path / "notes.txt").exists()
    save_pretrained(tmp_path, predictor.config, predictor.params)
    assert Tokenizer.from_folder(tmp_path).fingerprint == predictor.tokenizer.fingerprint


@pytest.mark.slow
def test_several_processes_save_and_load_together(tmp_path: Path) -> None:
    worker = ["-m", "tests.support.model_worker", "together", str(tmp_path / "exp[1]" / "model")]
    with cluster(worker, tmp_path / "logs", count=2, devices=2) as processes:
        wait_for_success(processes, seconds=120)
    assert number_of(tmp_path / "exp[1]" / "model") == 2
    assert "refused: [Errno 20] Not a directory" in processes[0].output
    assert "was not saved; the first process reports why" in processes[1].output
