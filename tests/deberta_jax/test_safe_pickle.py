"""The pickle reader builds plain containers, and runs nothing that a file names."""

import collections
import io
import pickle
from pathlib import Path

import pytest

from deberta_jax import safe_pickle

from ..support.fuzz_pickles import bombs, gadgets, planted

PLAIN = {"a": [1, -2, 10**12, 1.5], "b": ("x", None, True, False), "c": {"d": (), "é": [(1, 2), (1, 2, 3)]}, "e": b"f"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_containers_are_read(protocol: int) -> None:
    plain = PLAIN if protocol > 2 else {key: value for key, value in PLAIN.items() if key != "e"}  # no bytes before 3
    assert safe_pickle.load(io.BytesIO(pickle.dumps(plain, protocol=protocol))) == plain


def test_several_pickles_in_a_row_are_read_one_by_one() -> None:
    file = io.BytesIO(b"".join(pickle.dumps(value, protocol=2) for value in ([1], "two", 3)) + b"tail")
    assert [safe_pickle.load(file) for _ in range(3)] == [[1], "two", 3]
    assert file.read() == b"tail"


def test_allowed_globals_are_replaced() -> None:
    content = pickle.dumps(collections.OrderedDict(a=1), protocol=2)
    with pytest.raises(safe_pickle.UnsafePickleError, match=r"asks for collections\.OrderedDict, which is not allowed"):
        safe_pickle.load(io.BytesIO(content))
    assert safe_pickle.load(io.BytesIO(content), allowed={("collections", "OrderedDict"): dict}) == {"a": 1}


def test_persistent_ids_are_refused_unless_the_caller_loads_them() -> None:
    content = b"\x80\x02K\x07Q."
    with pytest.raises(safe_pickle.UnsafePickleError, match="persistent IDs"):
        safe_pickle.load(io.BytesIO(content))
    assert safe_pickle.load(io.BytesIO(content), persistent_load=lambda number: number + 1) == 8


def test_nothing_that_a_hostile_pickle_names_is_run(tmp_path: Path) -> None:
    sentinel, refused = tmp_path / "sentinel", 0
    program = pickle.dumps({"a": 1}, protocol=2)
    hostile = [content for piece in gadgets(sentinel) for content in planted(program, piece)]
    for content in [*hostile, *(b"\x80\x04" + bomb + b"." for bomb in bombs())]:
        try:
            safe_pickle.load(io.BytesIO(content), allowed={("collections", "OrderedDict"): dict})
        except Exception:  # the reader refuses it, or takes it for damaged
            refused += 1
        assert not sentinel.exists(), content
    assert refused >= len(hostile) - 20  # attributes of an allowed object are dropped


@pytest.mark.parametrize("module", ["os", "nested tuples"])
def test_a_global_named_by_nested_tuples_is_refused_without_hashing_them(module: str) -> None:
    nested = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60  # 2**60 elements, by way of the memo
    with pytest.raises(safe_pickle.UnsafePickleError, match="other than strings"):
        safe_pickle.load(io.BytesIO(b"\x80\x04" + (b"\x8c\x02os" if module == "os" else nested) + nested + b"\x93."))
