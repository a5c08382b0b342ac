"""All hosts of a run must write into one folder."""

import concurrent.futures
from pathlib import Path

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.hosts import shared_folder
from deberta_jax.train.hosts.shared_folder import check_shared_folder

from ...support.fake_coordination import FakeCoordination

NAMES = ["process 0 on a", "process 1 on b", "process 2 on c"]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(shared_folder, "_PAUSE", 0.01)


def check(folders: list[Path]) -> list[Exception | None]:
    """Lets each process check its folder. Returns the error of each."""
    store = FakeCoordination(len(folders))
    with concurrent.futures.ThreadPoolExecutor(len(folders)) as threads:
        checks = [
            threads.submit(check_shared_folder, store, folder, index=index, names=NAMES, seen_within=0.2)
            for index, folder in enumerate(folders)
        ]
        return [check.exception() for check in checks]  # type: ignore[misc]


def test_one_folder_is_accepted_and_left_empty(tmp_path: Path) -> None:
    assert check([tmp_path / "run"] * 3) == [None] * 3
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_its_own_is_refused_by_all_and_its_host_named(tmp_path: Path) -> None:
    errors = check([tmp_path / "run", tmp_path / "run", tmp_path / "other"])
    for error in errors:
        assert isinstance(error, UserError)
        assert "is not the same folder on all hosts: process 2 on c cannot see what process 0 on a writes" in str(error)
