"""Tests run on the CPU, as eight devices so that sharding is real."""

import os
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder that has learned nothing, and the tokenizer of a novel: to fine-tune in seconds."""
    import jax
    import jax.numpy as jnp
    from deberta_jax.train import tokenizer
    from deberta_jax.train.text import embedded_corpus, read_documents

    from deberta_jax import Deberta, save_pretrained

    from .test_encoder import SMALL

    folder = tmp_path_factory.mktemp("model")
    novel = next(read_documents((embedded_corpus(),), boundary="blank_line"))
    (folder / "text.txt").write_text("\n\n".join(novel.splitlines()[:300]), encoding="utf-8")
    tokenizer.main(tokenizer.TokenizerConfig(output=folder, text=(folder / "text.txt",), vocab_size=600))
    config = SMALL.replace(vocab_size=640, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.02)
    encoder = Deberta(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    save_pretrained(folder, config, {"deberta": encoder})
    return folder
