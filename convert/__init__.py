"""Conversion between PyTorch checkpoints and deberta-jax; the only package that knows PyTorch's parameter names."""

from .cache import local_model
from .errors import ConversionError
from .from_pytorch import load_pytorch
from .to_pytorch import save_pytorch

__all__ = ["ConversionError", "load_pytorch", "local_model", "save_pytorch"]
