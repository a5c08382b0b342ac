"""The fused TPU kernel of disentangled attention: forward, backward, its VJP."""

from .fused import fused_attention, unsupported

__all__ = ["fused_attention", "unsupported"]
