"""The fused TPU kernel of disentangled attention: forward, backward, its VJP."""

from .fused import MAX_HEAD_SIZE, fused_attention

__all__ = ["MAX_HEAD_SIZE", "fused_attention"]
