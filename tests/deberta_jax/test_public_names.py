"""Tests the public names of the package, which are imported on first use."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import deberta_jax


def test_every_public_name_exists_and_is_listed() -> None:
    for name in deberta_jax.__all__:
        assert getattr(deberta_jax, name) is not None
    assert set(deberta_jax.__all__) <= set(dir(deberta_jax))
    assert deberta_jax.__version__ == importlib.metadata.version("deberta-jax")
    assert (Path(deberta_jax.__file__).parent / "py.typed").is_file()


def test_modules_are_attributes_and_unknown_names_are_errors() -> None:
    assert deberta_jax.losses.__name__ == "deberta_jax.losses"
    with pytest.raises(AttributeError, match="module 'deberta_jax' has no attribute 'Debrta'"):
        deberta_jax.Debrta  # noqa: B018


def test_help_does_not_import_jax() -> None:
    program = "import sys; from deberta_jax.__main__ import main; main(['--help']); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_models_do_not_import_what_only_some_calls_need() -> None:
    lazy = ("orbax", "tensorstore", "optax", "grain", "tensorflow_datasets", "matplotlib", "tokenizers", "tyro")
    code = f"import sys, deberta_jax.models; print([name for name in {lazy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
