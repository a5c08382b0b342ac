"""Fused attention kernels for NVIDIA GPUs from Hopper on (H100, H200), written in Pallas for Mosaic GPU.

The kernels know nothing of relative positions: they add a bias [N, B, T, S] to the scores, which XLA computes from the
position terms and the segments, in bfloat16. So no float32 array of the size of the scores exists, and nothing of that
size is kept for the backward pass.

    forward.py     context and log-sum-exp of 64 queries, key block after key block, with a running maximum
    backward.py    the same scores again; gradients of scores and bias, and of the queries
    attention.py   the bias, the products that XLA does itself, and the rule of differentiation
    tile.py        what both kernels share: products, scores, the dropout mask

They have run on an H200 (docs/gpu.md). The tests run them in interpret mode, and compile them for an H100.
"""

from .attention import gpu_attention, unsupported

__all__ = ["gpu_attention", "unsupported"]
