"""The forward kernel for sequences of 128 tokens: several sequences per grid step.

A single sequence of 128 is so little work that the units wait for each other. The table, one 256 x 128 block, is loaded
once per step, and the products of the next sequence run during the softmax of this one.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from .forward import SoftmaxState, kept_of_block, online_softmax, write_sequence
from .operands import ForwardOutputs, KernelInputs, Ref, kept_shapes, kept_specs
from .plan import LANES, KernelPlan
from .scores import head_with_codes, scale_and_mask, visible_pairs
from .tiles import VMEM_LIMIT, head_salt, keep_block, only_head, pack, product, skew, unpack

MAX_SEQUENCES = 8  # per grid step; more are no faster


@functools.partial(jax.jit, static_argnums=0)
def forward_128(
    plan: KernelPlan, origin: Int32[Array, "3"], inputs: KernelInputs[jax.Array]
) -> ForwardOutputs[jax.Array]:
    """Runs the forward kernel for S = 128; arguments and results are those of `forward`."""
    batch, length, width = inputs.query.shape
    sequences = next(count for count in range(MAX_SEQUENCES, 0, -1) if batch % count == 0)
    tokens = pl.BlockSpec((sequences, length, LANES), lambda group, step, *_: (step, 0, group))
    code = pl.BlockSpec((sequences, length, LANES), lambda group, step, *_: (step, 0, 0)) if plan.heads > 1 else None
    segments = pl.BlockSpec((sequences, 1, length), lambda group, step, *_: (step, 0, 0))
    table = pl.BlockSpec((2 * length, LANES), lambda group, step, *_: (0, group))
    lse = pl.BlockSpec((sequences, plan.heads, 1, length), lambda group, step, *_: (step, group, 0, 0))
    specs = KernelInputs(
        query=tokens,
        key=tokens,
        value=tokens,
        query_segments=segments,
        key_segments=segments,
        query_code=code,
        key_code=code,
        key_table=table if plan.c2p else None,
        query_table=table if plan.p2c else None,
    )
    out = pl.pallas_call(
        functools.partial(_kernel, plan, sequences),
        name="disentangled_forward_short",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(width // LANES, batch // sequences),
            in_specs=[specs],
            out_specs=[ForwardOutputs(tokens, lse, kept_specs(plan, sequences))],
        ),
        out_shape=[
            ForwardOutputs(
                jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
                jax.ShapeDtypeStruct((batch, width // plan.head_size, 1, length), jnp.float32),
                kept_shapes(plan, inputs.query),
            )
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT),
    )(origin, inputs)
    return out[0]


def _kernel(
    plan: KernelPlan,
    sequences: int,
    origin: Ref,
    inputs: KernelInputs[Ref],
    outputs: ForwardOutputs[Ref],
) -> None:
    heads = range(plan.heads)
    # A sequence is one block, so here the two blocks that are packed and skewed together are two heads.
    slabs = [(head, head + 1) for head in heads[::2]] if plan.packed and plan.heads > 1 else [(head,) for head in heads]

    def table_of_each_head(table: Ref | None) -> list[Float[Array, "offsets 128"]]:
        return [] if table is None else [only_head(plan, table[...], head) for head in heads]

    key_tables, query_tables = table_of_each_head(inputs.key_table), table_of_each_head(inputs.query_table)

    def products(sequence: int) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Products of c2p and p2c by offset and of c2c by position, for each head."""
        c2p = [product(inputs.query[sequence], table, 1, 1) for table in key_tables]
        p2c = [product(inputs.key[sequence], table, 1, 1) for table in query_tables]
        return c2p, p2c, [product(*head_with_codes(plan, inputs, head, sequence), 1, 1) for head in heads]

    following = products(0)
    for sequence in range(sequences):
        (c2p, p2c, scores), global_sequence = following, pl.program_id(1) * sequences + sequence
        if sequence + 1 < sequences:  # emitted first: these occupy the matrix unit during this sequence's softmax
            following = products(sequence + 1)
        values, (visible,) = inputs.value[sequence].T, visible_pairs(plan, inputs, sequence)
        states: list[SoftmaxState] = []
        for slab in slabs:
            turned = skew(plan, pack(plan, [c2p[head] for head in slab])).T if plan.c2p else None
            skewed = skew(plan, pack(plan, [p2c[head] for head in slab])) if plan.p2c else None
            for head in slab:
                total = scores[head]
                for term in (turned, skewed):
                    if term is not None:
                        total += unpack(term, slab, head)
                keep = keep_block(plan, head_salt(plan, origin, global_sequence, head), 0, 0, 0)
                scaled = scale_and_mask(plan, total, visible)
                kept = kept_of_block(outputs, head, 0, sequence)
                states.append(online_softmax(scaled, keep, values[plan.lanes(head)], None, kept))
        write_sequence(plan, inputs, outputs, states, sequence)
