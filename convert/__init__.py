"""Conversion between PyTorch checkpoints and ours; the only place that knows PyTorch's names."""

from .from_pytorch import load_pytorch
from .to_pytorch import save_pytorch

__all__ = ["load_pytorch", "save_pytorch"]
