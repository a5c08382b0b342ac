"""Prints the TPU compiler's estimates for training steps and their parts. Nothing runs; nothing is measured.

    python -m tests.benchmarks.step_cost [--topologies v5e:2x2 v5p:2x2x1 v6e:2x2] [--cases layer mlm-head rtd ...]
                                         [--kept-layers 12]

Each case is compiled ahead of time for one chip of each topology. Layers keep their attention
probabilities for the backward pass, as a run makes them if there is memory: `--kept-layers` says how many of a model.
The columns are:

* Mcycles: millions of cycles, the sum of the compiler's estimates (loops counted as often as they run), of the executed
  bundles of our Pallas kernels, and of HBM traffic for instructions without an estimate.
* in kernels, from bytes: the parts of it in our kernels, and in gathers, scatters and sorts without an estimate.
* bound: a lower bound of the cycles, see train/compile_ahead/hlo_costs.py. Of each instruction, the largest of the next
  three counts.
* bundles, matrix, HBM: millions of bundles that are executed, and the millions of cycles that the matrix units and HBM
  would take at their published peaks. Loops count as often as they run; kernels are included.
* MFU, MFU by bound: model FLOP/s utilization by either figure, for whole steps; in brackets without the relative terms.
* temp, peak: temporary memory, and the peak of all memory.
* score-sized: number of gathers and scatters over arrays at least as large as the attention scores of 8 sequences.
"""

import argparse
import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable
from math import prod
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.encoder import Encoder
from deberta_jax.heads import LogitFactors
from deberta_jax.rtd import RTDConfig, RTDModels
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead.compile_process import compile_with_schedules
from deberta_jax.train.compile_ahead.hlo_costs import Cost, read_cost
from deberta_jax.train.compile_ahead.model_flops import rtd_flops, without_relative_terms
from deberta_jax.train.compile_ahead.tpu_compiler import (
    Chip,
    MemoryUse,
    OutOfMemoryError,
    topology,
    trace,
)
from deberta_jax.train.pretrain import build_optimizers, build_state, build_step
from deberta_jax.vocabulary_head import masked_lm_pass, sample_replacements

from ..support.configs import pretrain_config

BASE = DebertaConfig.named("deberta-v3-base")
BATCH, LENGTH, MASKED = 32, 512, 77  # 15 % of 512
SCORES = 8 * BASE.num_attention_heads * LENGTH * LENGTH  # elements, in the case with the fewest sequences

Case = tuple[Callable[..., Any], tuple[Any, ...]]  # a jitted function and its abstract arguments


# -------------------------------------------------------------------- the cases


def layer(kept_layers: int, *, train: bool) -> Case:
    """Returns one layer, forward and backward, on 16,384 tokens. `train` enables dropout."""
    config = BASE.replace(num_hidden_layers=1)
    encoder = Encoder(config, jnp.bfloat16, kept_layers=kept_layers)

    def loss(params: Any, embeddings: jax.Array, segments: jax.Array, key: jax.Array) -> jax.Array:
        states: Any = encoder.apply({"params": params}, embeddings, segments, train=train, rngs={"dropout": key})
        return jnp.square(states[0][-1].astype(jnp.float32)).sum()

    embeddings = jax.ShapeDtypeStruct((BATCH, LENGTH, config.hidden_size), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables: Any = jax.eval_shape(functools.partial(encoder.init, train=False), key, embeddings, segments)
    return jax.jit(jax.grad(loss, argnums=(0, 1))), (variables["params"], embeddings, segments, key)


def mlm_head(kept_layers: int) -> Case:
    """Returns masked LM loss and sampling for 256 x 512 tokens, forward and backward, at v3-base's width."""
    masked, width, vocab = 19_661, BASE.hidden_size, BASE.vocab_size

    def loss(hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, key: jax.Array):
        out = masked_lm_pass(LogitFactors(hidden, table, bias), labels, key=key, sampler=sample_replacements)
        return out[0], out

    arguments = (
        jax.ShapeDtypeStruct((1, masked, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab,), jnp.float32),
        jax.ShapeDtypeStruct((1, masked), jnp.int32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True)), arguments


def rtd_step(kept_layers: int) -> Case:
    """Returns a whole pre-training step of v3-base with a donated state."""
    run = pretrain_config(dtype="bfloat16", batch_size=BATCH)
    config = RTDConfig.half_depth(BASE)
    optimizers = build_optimizers(run)
    create = functools.partial(build_state, run, config, optimizers, {})
    models = RTDModels.build(config, dtype=jnp.bfloat16, kept_layers=kept_layers)
    shapes = {"input_ids": LENGTH, "segment_ids": LENGTH, "masked_positions": MASKED, "masked_labels": MASKED}
    batch = {name: jax.ShapeDtypeStruct((BATCH, length), jnp.int32) for name, length in shapes.items()}
    step = build_step(models, optimizers, run, sharing=config.embedding_sharing)
    return jax.jit(step, donate_argnums=0), (jax.eval_shape(create), batch)


def forward(kept_layers: int) -> Case:
    """Returns the forward pass of the encoder on 8 x 512 tokens."""
    model, ids = Deberta(BASE, jnp.bfloat16), jax.ShapeDtypeStruct((8, LENGTH), jnp.int32)
    return jax.jit(model.apply), (jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32)), ids)


# Each takes the number of layers that keep their probabilities; it is of no use without a backward pass through layers.
CASES: dict[str, Callable[[int], Case]] = {
    "layer": functools.partial(layer, train=False),
    "layer-dropout": functools.partial(layer, train=True),
    "mlm-head": mlm_head,
    "forward": forward,
    "rtd": rtd_step,
}


# -------------------------------------------------------------------- pricing


@dataclasses.dataclass(frozen=True)
class Price:
    """What the compiler says about a case.

    Attributes:
      cost: cycles, kernels and the bound.
      memory: memory of the program.
      score_sized: gathers and scatters over arrays as large as the attention scores.
      seconds: time of tracing and compiling.
    """

    cost: Cost
    memory: MemoryUse
    score_sized: list[str]
    seconds: float


def price_case(case: str, name: str, kept_layers: int) -> Price:
    """Compiles a case for the first chip of a topology. Raises OutOfMemoryError if it does not fit."""
    start = time.perf_counter()
    compiled = compile_with_schedules(functools.partial(trace_case, case, name, kept_layers))
    return Price(
        cost=read_cost(compiled.text, schedules=compiled.schedules, peaks=topology(name).chip.peaks),
        memory=compiled.memory,
        score_sized=gathers_and_scatters(compiled.text, SCORES),
        seconds=time.perf_counter() - start,
    )


def trace_case(case: str, name: str, kept_layers: int) -> Any:
    """Traces a case for the first chip of a topology."""
    function, arguments = CASES[case](kept_layers)
    return trace(function, *replicate(arguments, make_mesh(devices=topology(name).devices[:1])))


def replicate(arguments: Any, mesh: Mesh) -> Any:
    """Returns the shapes of a tree of arrays or shapes, replicated on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)


def gathers_and_scatters(text: str, min_elements: int) -> list[str]:
    """Returns the gathers and scatters of a program with a large operand or result, each as "opcode result"."""
    shapes = dict(re.findall(r"^\s+(?:ROOT )?%?(\S+) = (\w+\[[\d,]*\])", text, re.MULTILINE))
    large = []
    for name, opcode, operands in re.findall(
        r"^\s+(?:ROOT )?%?(\S+) = \S+ (gather|scatter)\((.*?)\)", text, re.MULTILINE
    ):
        arrays = [name, *(operand.strip(" %") for operand in operands.split(","))]
        if any(elements(shapes.get(array, "f32[]")) >= min_elements for array in arrays):
            large.append(f"{opcode} {shapes.get(name, '')}")
    return large


def elements(array: str) -> int:
    """Returns the number of elements of a type such as "bf16[8,512]{1,0:T(8,128)}"."""
    return prod(int(size) for size in array[array.index("[") + 1 : array.index("]")].split(",") if size)


def utilization(case: str, seconds: float, chip: Chip) -> str:
    """Returns the MFU of a whole step of that duration, such as "42.5% (38.9%)"; "-" for a part of one."""
    if case != "rtd":
        return "-"
    plain = RTDConfig.half_depth(without_relative_terms(BASE))
    flops = [3 * BATCH * rtd_flops(config, LENGTH, MASKED) for config in (RTDConfig.half_depth(BASE), plain)]
    whole, without = (count / seconds / chip.peak for count in flops)
    return f"{whole:.1%} ({without:.1%})"


def print_price(case: str, price: Price, chip: Chip) -> None:
    cost, bound, memory = price.cost, price.cost.bound, price.memory
    assert bound is not None
    kernels, moved = sum(cost.kernel_cycles.values()), round(cost.unpriced_bytes / chip.bandwidth * chip.clock)
    cycles = cost.cycles + kernels + moved
    counts = (cycles, kernels, moved, bound.cycles, bound.bundle_cycles, bound.matrix_cycles, bound.hbm_cycles)
    shares = [utilization(case, count / chip.clock, chip) for count in (cycles, bound.cycles)]
    print(
        f"{case:14}{''.join(f'{count / 1e6:11.2f}' for count in counts)}{''.join(f'{share:>16}' for share in shares)}"
        f"{memory.temporary_bytes / 1e9:10.2f}{memory.peak_bytes / 1e9:10.2f}{len(price.score_sized):13}"
        f"{price.seconds:12.0f}",
        flush=True,
    )
    for instruction in sorted(set(price.score_sized)):
        print(f"{'':12}  {price.score_sized.count(instruction)} x {instruction}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x2"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--kept-layers", type=int, default=BASE.num_hidden_layers)
    options = parser.parse_args()
    for name in options.topologies:
        chip, _ = topology(name)
        print(f"compiler estimates for one chip of {name}; Mcycles at {chip.clock / 1e9:.2f} GHz")
        counts = ("Mcycles", "in kernels", "from bytes", "bound", "bundles", "matrix", "HBM")
        print(
            f"{'':14}{''.join(f'{name:>11}' for name in counts)}{'MFU':>16}{'MFU by bound':>16}{'temp, GB':>10}"
            f"{'peak, GB':>10}{'score-sized':>13}{'compile, s':>12}"
        )
        for case in options.cases:
            try:
                print_price(case, price_case(case, name, options.kept_layers), chip)
            except OutOfMemoryError as error:
                print(f"{case:14}does not fit: {error}", flush=True)


if __name__ == "__main__":
    main()
