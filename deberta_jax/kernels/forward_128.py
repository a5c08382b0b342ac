"""The forward kernel for 128 tokens: several sequences a grid step, since one alone leaves the units waiting."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .forward import online_softmax, write_row
from .scores import own_lanes, scaled, visible_pairs
from .tiles import LANES, VMEM_LIMIT, Plan, head_salt, kept, pack, product, skew, unpack

MAX_ROWS = 8  # more bring nothing


@functools.partial(jax.jit, static_argnums=0)
def forward_short(plan: Plan, scalars, inputs: dict) -> tuple[jax.Array, jax.Array]:
    """As `forward`, for S = 128."""
    batch, length, width = inputs["query"].shape
    step_rows = next(rows for rows in range(MAX_ROWS, 0, -1) if batch % rows == 0)
    tokens = pl.BlockSpec((step_rows, length, LANES), lambda group, step, *_: (step, 0, group))
    code = pl.BlockSpec((step_rows, length, LANES), lambda group, step, *_: (step, 0, 0)) if plan.heads > 1 else None
    segments = pl.BlockSpec((step_rows, 1, length), lambda group, step, *_: (step, 0, 0))
    table = pl.BlockSpec((2 * length, LANES), lambda group, step, *_: (0, group))
    specs = {
        "query": tokens,
        "key": tokens,
        "value": tokens,
        "query_segments": segments,
        "key_segments": segments,
        "query_code": code,
        "key_code": code,
        "key_table": table if plan.c2p else None,
        "query_table": table if plan.p2c else None,
    }
    context, lse = pl.pallas_call(
        functools.partial(_kernel, plan, step_rows),
        name="disentangled_forward_short",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(width // LANES, batch // step_rows),
            in_specs=[specs],
            out_specs=[
                tokens,
                pl.BlockSpec((step_rows, plan.heads, 1, length), lambda group, step, *_: (step, group, 0, 0)),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(inputs["query"].shape, inputs["query"].dtype),
            jax.ShapeDtypeStruct((batch, width // plan.head_size, 1, length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT),
    )(scalars, inputs)
    return context, lse


def _kernel(plan: Plan, step_rows: int, scalars, refs, context, lse) -> None:
    heads = range(plan.heads)
    # The heads that are skewed together: here a pair is two heads, not two blocks.
    slabs = [(head, head + 1) for head in heads[::2]] if plan.packed and plan.heads > 1 else [(head,) for head in heads]

    def of_head(name: str) -> list[jax.Array]:
        return [] if refs[name] is None else [plan.pick(refs[name][...], head) for head in heads]

    key_tables, query_tables = of_head("key_table"), of_head("query_table")

    def products(row: int) -> tuple[list, list, list]:
        c2p = [product(refs["query"][row], table, 1, 1) for table in key_tables]
        p2c = [product(refs["key"][row], table, 1, 1) for table in query_tables]
        return c2p, p2c, [product(*own_lanes(plan, refs, head, row), 1, 1) for head in heads]

    following = products(0)
    for row in range(step_rows):
        (c2p, p2c, scores), sequence = following, pl.program_id(1) * step_rows + row
        if row + 1 < step_rows:  # written first: these fill the matrix unit during this sequence's softmax
            following = products(row + 1)
        values, (visible,), states = refs["value"][row].T, visible_pairs(plan, refs, row), []
        for slab in slabs:
            turned = skew(plan, pack(plan, [c2p[head] for head in slab])).T if plan.c2p else None
            placed = skew(plan, pack(plan, [p2c[head] for head in slab])) if plan.p2c else None
            for head in slab:
                total = scores[head]
                for term in (turned, placed):
                    if term is not None:
                        total += unpack(term, slab, head)
                keep = None
                if plan.drop_below:
                    keep = kept(plan, head_salt(plan, scalars, sequence, head), 0, 0)
                values_t = values[plan.lanes(head)]
                states.append(online_softmax(plan, scaled(plan, total, visible), keep, values_t, None))
        write_row(plan, refs, context, lse, states, row)
