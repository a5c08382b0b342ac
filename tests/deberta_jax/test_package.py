"""What `import deberta_jax` offers, and what it leaves for later."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import deberta_jax


def test_exported_names_exist() -> None:
    assert all(hasattr(deberta_jax, name) for name in deberta_jax.__all__)
    assert deberta_jax.__version__ == importlib.metadata.version("deberta-jax")
    assert (Path(deberta_jax.__file__).parent / "py.typed").is_file()


def test_import_loads_no_package_that_only_some_calls_need() -> None:
    """`import deberta_jax` takes about a second; Orbax alone would double that."""
    lazy = ("orbax", "tensorstore", "optax", "grain", "tensorflow_datasets", "matplotlib", "tokenizers", "tyro")
    code = f"import sys, deberta_jax; print([name for name in {lazy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
