"""Tests run on the CPU, as eight devices so that sharding is real."""

import os
from pathlib import Path

import pytest

from .support import shape_checks

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Level 0 halves compile times. In one piece: of the many pieces of an interpreted kernel, XLA's CPU compiler compiles
# one inside another until its stack is full. Programs are kept, as many tests compile the same ones.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


shape_checks.install()


@pytest.fixture(scope="session")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, the first lines of a novel, and tokenizer/, which was trained on them."""
    from .support.novel import small_tokenizer

    folder = tmp_path_factory.mktemp("novel")
    small_tokenizer(folder / "tokenizer", folder / "text.txt")
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, novel: Path) -> Path:
    """A folder with a tiny encoder of random weights and the tokenizer of a novel, for fine-tuning in seconds."""
    import jax
    import jax.numpy as jnp

    from deberta_jax import Deberta, Tokenizer, save_pretrained

    from .support.small_models import TINY

    folder = tmp_path_factory.mktemp("model")
    Tokenizer.from_folder(novel / "tokenizer").save(folder)
    encoder = Deberta(TINY).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    save_pretrained(folder, TINY, {"deberta": encoder})
    return folder
