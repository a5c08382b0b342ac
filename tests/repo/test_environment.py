"""Commands in hostile environments: each works or ends with one line, as real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOT_UTF8 = b"caf\xe9"


def run(*arguments: str | bytes, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a command of the library; `redirect` is what a shell appends to it."""
    words = [sys.executable, "-m", "deberta_jax", *arguments]
    shell = ["bash", "-c", f'exec "$@" {redirect}', "bash"] if redirect else []
    return subprocess.run(
        [*shell, *words], env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, capture_output=True, check=False
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [("JAX_PLATFORMS", "nonsense"), ("JAX_PLATFORMS", "cuda"), ("JAX_DEBUG_NANS", "maybe")],
)
def test_a_variable_that_jax_refuses_is_named_in_one_line(small_model: Path, variable: str, value: str) -> None:
    done = run("fill-mask", str(small_model), "a [MASK]", **{variable: value})
    assert done.returncode == 1
    message = done.stderr.decode().splitlines()[-1]
    assert message.startswith("deberta-jax fill-mask: JAX does not start (")
    assert f"{variable}={value}" in message
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirect", ["<&- >&- 2>&-", ">&-", "2>&-", "<&-"])
def test_closed_standard_streams(novel: Path, tmp_path: Path, redirect: str) -> None:
    """A file that is opened next must not become standard output."""
    out = tmp_path / "corpus"
    done = run(
        *("prepare", "--output", str(out), "--tokenizer", str(novel / "tokenizer"), "--text", str(novel / "text.txt")),
        redirect=redirect,
    )
    assert done.returncode == 0
    assert (out / "manifest.json").is_file()


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_that_are_not_utf8_and_terminals_that_are_not(
    novel: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """A file of text may have any name; a folder that TensorStore or ArrayRecord open may not."""
    text, out = os.fsencode(tmp_path) + b"/" + NOT_UTF8 + b".txt", os.fsencode(tmp_path) + b"/" + NOT_UTF8
    Path(os.fsdecode(text)).write_bytes((novel / "text.txt").read_bytes())
    given = ("--tokenizer", str(novel / "tokenizer"), "--text", text)
    done = run("prepare", "--output", str(tmp_path / "out"), *given, **environment)
    assert done.returncode == 0, done.stderr
    refused = run("prepare", "--output", out, *given, **environment)
    assert refused.returncode == 1
    assert refused.stderr.count(b"\n") == 1
    assert b"caf\\udce9' has a name that is not UTF-8" in refused.stderr
