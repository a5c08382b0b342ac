"""Paths that Orbax takes literally."""

from pathlib import Path

import pytest
from etils import epath

from deberta_jax.errors import UserError
from deberta_jax.orbax_path import orbax_path


@pytest.mark.parametrize("name", ["exp[1]", "*", "?", "[!a]", "plain"])
def test_only_the_argument_of_glob_is_a_pattern(tmp_path: Path, name: str) -> None:
    for folder in (name, "other"):
        (tmp_path / folder).mkdir()
        for file in ("part_0", "part_1", "rest"):
            (tmp_path / folder / file).touch()
    found = sorted(orbax_path(tmp_path / name).glob("part_*"))
    assert [str(path) for path in found] == [str(tmp_path / name / file) for file in ("part_0", "part_1")]


def test_paths_that_are_derived_from_it_are_literal_too(tmp_path: Path, monkeypatch) -> None:
    path = orbax_path(tmp_path / "[1]")
    for derived in (path / "a", path.parent, epath.Path(path), path.resolve(), path.with_name("x")):
        assert type(derived) is type(path)
    monkeypatch.chdir(tmp_path)
    assert str(orbax_path("relative")) == str(tmp_path / "relative")


def test_names_that_tensorstore_would_change_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a backslash; choose another folder"):
        orbax_path(tmp_path / "a\\b")
    with pytest.raises(UserError, match="name that is not UTF-8") as refused:
        orbax_path(tmp_path / "caf\udce9")
    str(refused.value).encode()
