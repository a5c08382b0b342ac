"""Failures of the environment that one line describes."""

import os

import jax
import pytest

from deberta_jax.errors import UserError, as_expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory (MemoryError); give smaller sizes"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 TB"),
            "device out of memory: RESOURCE_EXHAUSTED: 9 TB; give a",
        ),
        (
            UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"),
            "the name 'caf\\udce9' is not UTF-8",
        ),
    ],
)
def test_a_failure_of_the_environment_is_one_line(error: Exception, message: str) -> None:
    expected = as_expected(error)
    assert isinstance(expected, UserError)
    assert str(expected).startswith(message)


def test_a_check_of_jax_that_the_user_asked_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError("operands could not be broadcast, as jax_numpy_rank_promotion is 'raise'")
    assert as_expected(error) is error
    monkeypatch.setitem(os.environ, "JAX_NUMPY_RANK_PROMOTION", "raise")
    assert str(as_expected(error)).startswith("JAX_NUMPY_RANK_PROMOTION=raise is not supported (")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
    ],
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    assert as_expected(error) is error
