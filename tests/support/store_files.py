"""What every store of files must do, on a server of any kind."""

from pathlib import Path

import pytest

from deberta_jax import stores
from deberta_jax.errors import MissingFileError


def check_files(address: str, folder: Path) -> None:
    """Writes, lists, copies, reads and removes files below an address that holds nothing.

    Args:
      address: of a folder in a store.
      folder: a local one for the file that is written.
    """
    stores.check_writable(address)
    assert stores.entries(address) == {}
    (folder / "file").write_bytes(b"12345")
    entry = stores.put_file(folder / "file", f"{address}/a/b")
    stores.copy(f"{address}/a/b", f"{address}/c")
    assert stores.entries(address).keys() == {"a/b", "c"}
    assert stores.entries(address)["a/b"] == entry
    assert stores.names(address) == ["a", "c"]
    assert stores.matching(f"{address}/*/b") == [f"{address}/a/b"]
    assert stores.read(f"{address}/c") == b"12345"
    assert stores.read(f"{address}/c", 1, 2) == b"23"
    assert stores.read(f"{address}/c", 9, 2) == b""
    assert stores.entry(f"{address}/a") is None
    stores.remove(f"{address}/c")
    stores.remove(f"{address}/c")
    with pytest.raises(MissingFileError, match=f"{address}/c: no such file or bucket"):
        stores.read(f"{address}/c")
    stores.remove_folder(address)
    assert not stores.exists(address)
