"""Files in gs://, by an emulator of the server."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from deberta_jax import stores
from deberta_jax.errors import MissingFileError
from deberta_jax.mirrors import Mirror, fetch

from ..support.store_files import check_files

# Otherwise gcsfs asks a server of gRPC, which the emulator lacks, for the layout of each bucket.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="the server for gs:// needs gcp-storage-emulator")
pytestmark = pytest.mark.filterwarnings("ignore")  # of gcsfs and aiohttp


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    stores._system.cache_clear()
    yield "gs://bucket"
    stores._system.cache_clear()
    server.stop()


def test_files_are_written_listed_read_and_removed(bucket: str, tmp_path: Path):
    check_files(f"{bucket}/folder", tmp_path)


def test_a_folder_goes_there_and_back(bucket: str):
    mirror = Mirror(f"{bucket}/model")
    mirror.path.mkdir(parents=True)
    (mirror.path / "config.json").write_text("{}")
    mirror.push()
    (mirror.path / "config.json").unlink()
    assert (fetch(f"{bucket}/model") / "config.json").read_text() == "{}"


def test_a_bucket_that_does_not_exist_is_named(bucket: str):
    with pytest.raises(MissingFileError, match=r"cannot write gs://none/folder: no such file or bucket"):
        stores.check_writable("gs://none/folder")
