"""TPU topologies that tests compile for without a TPU."""

import importlib.util

import pytest

from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu, the TPU compiler: pip install jax[tpu]"
)


def small_slice(kind: str) -> str:
    """A topology of several chips of this kind."""
    return f"{kind}:{next(shape for shape in CHIPS[kind].shapes if shape.startswith('2x2'))}"
