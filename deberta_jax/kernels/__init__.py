"""Fused TPU kernels of disentangled attention: forward, backward, and a differentiable function over them.

The kernels of `vocabulary*.py`, for the masked LM loss, are described in `vocabulary.py`; this page is about attention.

The problem. A score needs q_i . pos_key[row(i - j)] and k_j . pos_query[row(i - j)] for each query i and key j. A
gather of S x S numbers is what a TPU does slowest. But the row depends on i - j alone, so the kernels multiply and then
shift:

    1. `fused.py` expands a table once per call to one row per distance: row t of the expanded table [2S, W] is the row
       of distance S - t (c2p) or t - S (p2c). "Offset" means this t.
    2. 128 queries reach the C + 128 consecutive offsets of a "window". One matrix product gives their scores by offset:
       x[r, c], where c = j + 128 - r belongs to key j.
    3. `tiles.skew` moves row r by r lanes, so that scores by offset become scores by position: out[r, j] =
       x[r, j + 128 - r]. A TPU v5 or newer has a rotate with a stride for this, a v4 gathers within 128 lanes.
    4. The backward kernel does the same in reverse order: `tiles.unskew`, then a product with the table.

Layout. A grid step computes one tile, C queries by C keys (C <= 512, a multiple of 128), for as many heads as fill 128
lanes: two of size 64. Scores are stored as [keys, queries]: maximum and sum of the softmax then run down the sublanes,
which is cheap, and both are dense rows. Context and gradients are accumulated as [head size, queries]: such products
load few weights into the matrix unit, and loading weights costs as much as multiplying.

    tile    C x C scores; a sequence has chunks x chunks of them
    block   128 rows or lanes of a tile
    slab    the one or two blocks that are skewed together: in bfloat16, two scores are packed into 32 bits

Masks. Two heads of 64 lanes share a product of 128 lanes by zeroing one head's lanes on one side. The lanes that would
be zero carry a code of the segment instead (`scores.segment_codes`): its product is 0 within a segment and about -2^20
otherwise, so the mask costs nothing. A head that fills all lanes compares segments. A tile whose two ranges of segments
do not overlap is skipped.

Scheduling. The matrix unit bounds the forward kernel. The compiler schedules straight-line code well, but never moves
work across the end of a step. So while a head's softmax keeps the vector unit busy, the kernel multiplies the table for
the next head, and at the end of a step for the first head of the next sequence; `forward.py` has the details.

Dropout. Masks come from a hash of seed, sequence, head, query and key (`random.keep_mask`), so the backward kernel
draws the forward's mask again. The TPU's own generator returns only zeros in interpret mode and could not be tested.

Kept probabilities. The backward kernel computes the scores again, unless the call keeps the probabilities, where a
sequence is one tile: the forward kernel then also writes the weights of the softmax, [B, heads, S keys, S queries] in
the dtype of the inputs, and the maxima that they refer to. A weight that dropout drops has a negative sign. The
backward kernel reads them, and needs neither the products of the scores nor the softmax nor the hash. The context is
the same bit for bit; the gradients differ by the rounding of the weights. `plan.kept_bytes` says what that takes.

Files: `fused.py` (padding, tables, VJP), `plan.py` (static choices, what is supported), `operands.py` (what kernels
read and write), `forward.py`, `forward_128.py` (sequences of 128), `backward.py` and `backward_tile.py`, `scores.py`
(the three terms of a tile) and `tiles.py` (operations on tiles). `python -m tests.benchmarks.kernel_cost` prices the
compiled kernels without a TPU.
"""

from .fused import fused_attention
from .plan import kept_bytes, unsupported

__all__ = ["fused_attention", "kept_bytes", "unsupported"]
