"""Prints the TPU compiler's estimates for training steps and their parts. Nothing runs; nothing is measured.

    python -m tests.benchmarks.step_cost [--topologies v5e:2x2 v5p:2x2x1 v6e:2x2] [--cases layer mlm-head rtd ...]

Each case is compiled ahead of time for one chip of each topology. The columns are:

* Mcycles: millions of cycles, the sum of the compiler's estimates (loops counted as often as they run) and the bundles
  of our Pallas kernels.
* in kernels: the part of it in our kernels.
* matrix, HBM: the cycles that the matrix units and HBM would take at their peak, outside the kernels (loops counted
  once).
* unpriced: number of other gathers, scatters and sorts, which have no estimate and count as 0 cycles.
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
from deberta_jax.losses import masked_lm_and_samples
from deberta_jax.rtd import RTDConfig, RTDModels, sample_replacements
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead.hlo_costs import Cost
from deberta_jax.train.compile_ahead.kernel_costs import find_kernels, kernel_cycles
from deberta_jax.train.compile_ahead.tpu_compiler import (
    Chip,
    MemoryUse,
    OutOfMemoryError,
    compile_for_tpu,
    cost_of,
    memory_of,
    topology,
    trace,
)
from deberta_jax.train.pretrain import build_optimizers, build_state, build_step

from ..support.configs import pretrain_config

BASE = DebertaConfig.named("deberta-v3-base")
BATCH, LENGTH, MASKED = 32, 512, 77  # 15 % of 512
SCORES = 8 * BASE.num_attention_heads * LENGTH * LENGTH  # elements, in the case with the fewest sequences

Case = tuple[Callable[..., Any], tuple[Any, ...]]  # a jitted function and its abstract arguments


# -------------------------------------------------------------------- the cases


def layer(*, train: bool) -> Case:
    """Returns one layer, forward and backward, on 16,384 tokens. `train` enables dropout."""
    config = BASE.replace(num_hidden_layers=1)
    encoder = Encoder(config, jnp.bfloat16)

    def loss(params: Any, embeddings: jax.Array, segments: jax.Array, key: jax.Array) -> jax.Array:
        states: Any = encoder.apply({"params": params}, embeddings, segments, train=train, rngs={"dropout": key})
        return jnp.square(states[0][-1].astype(jnp.float32)).sum()

    embeddings = jax.ShapeDtypeStruct((BATCH, LENGTH, config.hidden_size), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables: Any = jax.eval_shape(functools.partial(encoder.init, train=False), key, embeddings, segments)
    return jax.jit(jax.grad(loss, argnums=(0, 1))), (variables["params"], embeddings, segments, key)


def mlm_head() -> Case:
    """Returns masked LM loss and sampling for 256 x 512 tokens, forward and backward, at v3-base's width."""
    masked, width, vocab = 19_661, BASE.hidden_size, BASE.vocab_size

    def loss(hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, key: jax.Array):
        out = masked_lm_and_samples(hidden, table, bias, labels, key=key, sampler=sample_replacements)
        return out[0], out

    arguments = (
        jax.ShapeDtypeStruct((1, masked, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab,), jnp.float32),
        jax.ShapeDtypeStruct((1, masked), jnp.int32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True)), arguments


def rtd_step() -> Case:
    """Returns a whole pre-training step of v3-base with a donated state."""
    run = pretrain_config(dtype="bfloat16", batch_size=BATCH)
    config = RTDConfig.half_depth(BASE)
    optimizers = build_optimizers(run)
    create = functools.partial(build_state, run, config, optimizers, {})
    models = RTDModels.build(config, dtype=jnp.bfloat16)
    shapes = {"input_ids": LENGTH, "segment_ids": LENGTH, "masked_positions": MASKED, "masked_labels": MASKED}
    batch = {name: jax.ShapeDtypeStruct((BATCH, length), jnp.int32) for name, length in shapes.items()}
    step = build_step(models, optimizers, run, sharing=config.embedding_sharing)
    return jax.jit(step, donate_argnums=0), (jax.eval_shape(create), batch)


def forward() -> Case:
    """Returns the forward pass of the encoder on 8 x 512 tokens."""
    model, ids = Deberta(BASE, jnp.bfloat16), jax.ShapeDtypeStruct((8, LENGTH), jnp.int32)
    return jax.jit(model.apply), (jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32)), ids)


CASES: dict[str, Callable[[], Case]] = {
    "layer": lambda: layer(train=False),
    "layer-dropout": lambda: layer(train=True),
    "mlm-head": mlm_head,
    "forward": forward,
    "rtd": rtd_step,
}


# -------------------------------------------------------------------- pricing


@dataclasses.dataclass(frozen=True)
class Price:
    """What the compiler says about a case.

    Attributes:
      cost: cycles and kernels.
      memory: memory of the program.
      flops, bytes: operations and memory traffic outside the kernels, with loops counted once.
      score_sized: gathers and scatters over arrays as large as the attention scores.
      seconds: time of tracing and compiling.
    """

    cost: Cost
    memory: MemoryUse
    flops: float
    bytes: float
    score_sized: list[str]
    seconds: float


def price_case(case: str, name: str) -> Price:
    """Compiles a case for the first chip of a topology. Raises OutOfMemoryError if it does not fit."""
    start = time.perf_counter()
    traced, _ = trace_case(case, name)
    compiled = compile_for_tpu(traced)
    kernels = kernel_cycles(functools.partial(case_jaxpr, case, name)) if find_kernels(traced.jaxpr) else {}
    analysis = compiled.cost_analysis()
    return Price(
        cost=cost_of(compiled, kernels=kernels),
        memory=memory_of(compiled),
        flops=analysis["flops"],
        bytes=analysis["bytes accessed"],
        score_sized=gathers_and_scatters(compiled.as_text(), SCORES),
        seconds=time.perf_counter() - start,
    )


def trace_case(case: str, name: str) -> tuple[Any, Any]:
    """Returns the traced case, and the device that it is traced for."""
    _, devices = topology(name)
    function, arguments = CASES[case]()
    return trace(function, *replicate(arguments, make_mesh(devices=devices[:1]))), devices[0]


def replicate(arguments: Any, mesh: Mesh) -> Any:
    """Returns the shapes of a tree of arrays or shapes, replicated on every device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments)


def case_jaxpr(case: str, name: str) -> tuple[Any, Any]:
    traced, device = trace_case(case, name)
    return traced.jaxpr, device


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


def print_price(case: str, price: Price, chip: Chip) -> None:
    kernels = sum(price.cost.kernel_cycles.values())
    matrix, memory = price.flops / chip.peak * chip.clock, price.bytes / chip.bandwidth * chip.clock
    print(
        f"{case:14}{(price.cost.cycles + kernels) / 1e6:10.2f}{kernels / 1e6:12.2f}{matrix / 1e6:9.2f}"
        f"{memory / 1e6:9.2f}{sum(price.cost.unpriced.values()):12}{price.memory.temporary_bytes / 1e9:10.2f}"
        f"{price.memory.peak_bytes / 1e9:10.2f}{len(price.score_sized):13}{price.seconds:12.0f}",
        flush=True,
    )
    for instruction in sorted(set(price.score_sized)):
        print(f"{'':12}  {price.score_sized.count(instruction)} x {instruction}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x2"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    for name in options.topologies:
        chip, _ = topology(name)
        print(f"compiler estimates for one chip of {name}; Mcycles at {chip.clock / 1e9:.2f} GHz")
        print(
            f"{'':14}{'Mcycles':>10}{'in kernels':>12}{'matrix':>9}{'HBM':>9}{'unpriced':>12}{'temp, GB':>10}"
            f"{'peak, GB':>10}{'score-sized':>13}{'compile, s':>12}"
        )
        for case in options.cases:
            try:
                print_price(case, price_case(case, name), chip)
            except OutOfMemoryError as error:
                print(f"{case:14}does not fit: {error}", flush=True)


if __name__ == "__main__":
    main()
