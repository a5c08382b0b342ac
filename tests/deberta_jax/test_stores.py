"""Files in stores, by the file system in memory of fsspec, whose faults the tests inject."""

import gzip
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from deberta_jax import stores
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.stores import StoreError, address_of
from deberta_jax.terminal import message_text


@pytest.fixture
def bucket() -> Iterator[str]:
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    stores.remove_folder(address)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """A list of errors, of which each request raises the first one and removes it. Nothing waits for long."""
    pending: list[Exception] = []
    opened = stores._open

    def open_or_fail(address: str) -> tuple[Any, str]:
        if pending:
            raise pending.pop(0)
        return opened(address)

    monkeypatch.setattr(stores, "_open", open_or_fail)
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    return pending


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("gs://b/p", "gs://b/p"),
        (Path("gs://b/p/"), "gs://b/p"),
        (Path("s3://b") / "a[1]" / "x.txt", "s3://b/a[1]/x.txt"),
        ("other://b/p", "other://b/p"),
        ("/data/gs:/b", None),
        (Path("data/gs:/b"), None),
        ("microsoft/deberta-v3-base", None),
        ("tfds:glue/sst2", None),
        ("hf:/data/set", None),
        ("hf://user/set", None),
        ("csv:/data/a.csv", None),
        ("C:/data", None),
        (Path("gs://"), "gs://"),
        ("", None),
    ],
)
def test_addresses_are_recognized_also_after_pathlib(path: str | Path, address: str | None):
    assert address_of(path) == address


def test_messages_show_both_slashes():
    assert message_text(f"no file {Path('gs://b/p')}, {Path('/a/gs:/b')}") == "no file gs://b/p, /a/gs:/b"


def test_files_are_written_listed_read_copied_and_removed(bucket: str):
    stores.check_writable(bucket)
    assert stores.entries(bucket) == {}
    assert stores.names(bucket) == []
    assert not stores.exists(bucket)
    stores.write(f"{bucket}/a/b.txt", b"hello")
    stores.copy(f"{bucket}/a/b.txt", f"{bucket}/c/d/e")
    assert list(stores.entries(bucket)) == ["a/b.txt", "c/d/e"]
    assert list(stores.entries(f"{bucket}/a/b.txt")) == [""]
    assert stores.names(bucket) == ["a", "c"]
    assert stores.exists(f"{bucket}/c/d")
    assert stores.entry(f"{bucket}/c/d") is None
    assert stores.entry(f"{bucket}/c/d/e").size == 5
    assert stores.read(f"{bucket}/c/d/e") == b"hello"
    assert stores.read(f"{bucket}/c/d/e", 1, 3) == b"ell"
    assert stores.read(f"{bucket}/c/d/e", 3, 100) == b"lo"
    assert stores.read(f"{bucket}/c/d/e", 100, 5) == b""
    stores.remove(f"{bucket}/a/b.txt")
    stores.remove(f"{bucket}/a/b.txt")
    stores.remove_folder(f"{bucket}/c")
    stores.remove_folder(f"{bucket}/c")
    assert stores.entries(bucket) == {}


def test_a_version_changes_with_the_content(bucket: str, tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    first = stores.put_file(tmp_path / "a", f"{bucket}/a")
    assert stores.entries(bucket) == {"a": first}
    (tmp_path / "a").write_bytes(b"two")
    assert stores.put_file(tmp_path / "a", f"{bucket}/a") != first


def test_reads_at_any_place(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores, "_BLOCK_BYTES", 16)
    content = os.urandom(5000)
    stores.write(f"{bucket}/a.gz", gzip.compress(content))
    with stores.open_binary(f"{bucket}/a.gz") as file, gzip.GzipFile(fileobj=file) as unpacked:
        assert unpacked.read() == content
        assert file.seek(-3, os.SEEK_END) == file.tell()
        assert len(file.read()) == 3
    with pytest.raises(MissingFileError, match=r"memory://.*/none: no such file"), stores.open_binary(f"{bucket}/none"):
        pass


@pytest.mark.parametrize("error", [OSError("SlowDown: 503"), ConnectionResetError("reset"), TimeoutError("slow")])
def test_an_outage_is_waited_for_and_reported_once(
    bucket: str, faults: list[Exception], caplog: pytest.LogCaptureFixture, error: Exception
):
    stores.write(f"{bucket}/a", b"1")
    faults += [error] * 4
    assert stores.read(f"{bucket}/a") == b"1"
    assert len(caplog.records) == 1
    assert f"{bucket}/a does not answer ({error}); trying again for up to 180 s" in caplog.text


def test_a_long_outage_ends_in_one_line(bucket: str, faults: list[Exception], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores, "PATIENCE", 0.0)
    faults += [OSError("503")] * 9
    with pytest.raises(StoreError, match=r"cannot write memory://.*: the store has not answered for 0 s \(503\)"):
        stores.write(f"{bucket}/a", b"1")
    assert len(faults) == 8


def _named(name: str, **fields: Any) -> Exception:
    error = type(name, (Exception,), {"__module__": "botocore.exceptions"})("sorry")
    for key, value in fields.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied"), r"access denied \(Access Denied\); check the credentials"),
        (_named("NoCredentialsError"), "access denied"),
        (_named("HttpError", code=403), "access denied"),
        (_named("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 401}}), "access denied"),
        (FileNotFoundError("The specified bucket does not exist"), "no such file or bucket"),
        (_named("HttpError", code=404), "no such file or bucket"),
        (_named("HttpError", code=400), "cannot write memory://.*: sorry"),
    ],
)
def test_what_no_wait_helps_against_is_an_error_at_once(
    bucket: str, faults: list[Exception], error: Exception, message: str
):
    faults += [error] * 2
    with pytest.raises(UserError, match=message):
        stores.check_writable(bucket)
    assert len(faults) == 1


def test_other_errors_are_bugs(bucket: str, faults: list[Exception]):
    faults.append(KeyError("a mistake of ours"))
    with pytest.raises(KeyError):
        stores.exists(bucket)


def test_faults_of_the_local_disk_are_not_waited_for(bucket: str, tmp_path: Path):
    stores.write(f"{bucket}/a", b"1")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        stores.fetch_file(f"{bucket}/a", tmp_path / "file" / "a")


def test_unknown_protocols_and_parents_are_refused():
    with pytest.raises(UserError, match=r"other:// is no protocol of fsspec"):
        stores.read("other://b/p")
    with pytest.raises(UserError, match=r"has the name '\.\.'"):
        stores.read("memory://b/../p")
    assert "memory" in fsspec.available_protocols()
