"""Settings of all tests: they run on the CPU, as eight devices, so that sharding is real."""

import importlib.metadata
import os
from pathlib import Path

import pytest

from .support import shape_checks

FLAGS = [
    "--xla_force_host_platform_device_count=8",
    # Most of a test's time is compilation. Optimization level 0 halves it.
    "--xla_backend_optimization_level=0",
    # One piece per program: XLA compiles the many pieces of an interpreted kernel recursively and overflows the stack.
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The older emitters compile small programs in about 60 % of the time. Later releases do not know the flag.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# Compiled programs are shared between the workers of a run and between runs.
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
    # Without jit the initializers compile one by one, which takes longer than the whole model.
    encoder = jax.jit(Deberta(TINY).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    save_pretrained(folder, TINY, {"deberta": encoder})
    return folder
