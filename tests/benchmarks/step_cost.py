"""What the TPU compiler says that training steps cost, on a machine without a TPU. Nothing runs; nothing is measured.

    python -m tests.benchmarks.step_cost [--topology v5e:2x2] [--cases mlm-head rtd ...]

Compiles each case ahead of time for one chip of the topology and prints compiler estimates: cycles (a sum of what the
compiler puts on its fusions, loops counted as often as they run), temporary and total memory, and the gathers and
scatters over arrays at least as large as all attention scores. Gathers, scatters and Pallas kernels carry no estimate
and count as 0: how many there are is printed beside the cycles.
"""

import argparse
import dataclasses
import os
import re
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks no metadata server: there is none

import jax
import jax.numpy as jnp
from deberta_jax.train.configs import PretrainConfig
from deberta_jax.train.pretrain import build_optimizers, build_step, init_optimizers
from deberta_jax.train.state import TrainState
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.losses import masked_lm_and_samples
from deberta_jax.rtd import RTDConfig, RTDModels, init_params, sample_replacements
from deberta_jax.sharding import make_mesh

BASE = DebertaConfig.named("deberta-v3-base")
BATCH, LENGTH, MASKED = 32, 512, 77  # 15 % of 512
SCORES = BATCH * BASE.num_attention_heads * LENGTH * LENGTH


@dataclasses.dataclass(frozen=True)
class Cost:
    """Compiler estimates of one program on one chip; bytes and cycles."""

    cycles: int
    unpriced: int  # gathers, scatters and kernels, loops counted once
    temporary: int
    total: int  # arguments, results that take memory of their own, temporaries
    score_sized: list[str]  # gathers and scatters over arrays as large as the scores


# -------------------------------------------------------------------- the cases


def mlm_head() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Masked LM loss and sampling of 256 x 512 tokens, forward and backward, at v3-base's width."""
    rows, width, words = 19_661, BASE.hidden_size, BASE.vocab_size

    def loss(hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, key: jax.Array):
        out = masked_lm_and_samples(hidden, table, bias, labels, key=key, score=sample_replacements)
        return out[0], out

    arguments = (
        jax.ShapeDtypeStruct((1, rows, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((words, width), jnp.float32),
        jax.ShapeDtypeStruct((words,), jnp.float32),
        jax.ShapeDtypeStruct((1, rows), jnp.int32),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True)), arguments


def rtd_step(**settings: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A whole pre-training step of v3-base, its state donated."""
    run = PretrainConfig(output=Path(), tokenizer=Path(), dtype="bfloat16", batch_size=BATCH, **settings)
    config = RTDConfig.half_depth(BASE)
    optimizers = build_optimizers(run)

    def create() -> TrainState:
        params = init_params(config, jax.random.key(0))
        return TrainState.create(params, init_optimizers(optimizers, params), seed=0)

    models = RTDModels.build(config, dtype=jnp.bfloat16, remat=run.remat)
    shapes = {"input_ids": LENGTH, "segment_ids": LENGTH, "masked_positions": MASKED, "masked_labels": MASKED}
    batch = {name: jax.ShapeDtypeStruct((BATCH, length), jnp.int32) for name, length in shapes.items()}
    step = build_step(models, optimizers, run, sharing=config.embedding_sharing)
    return jax.jit(step, donate_argnums=0), (jax.eval_shape(create), batch)


def forward() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The encoder alone, 8 x 512."""
    model, ids = Deberta(BASE, jnp.bfloat16), jax.ShapeDtypeStruct((8, LENGTH), jnp.int32)
    return jax.jit(model.apply), (jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8), jnp.int32)), ids)


CASES: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "mlm-head": mlm_head,
    "forward": forward,
    "rtd": rtd_step,
    "rtd-remat": lambda: rtd_step(remat=True),
}


# -------------------------------------------------------------------- reading a compiled program


def compile_for(topology: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The program of a jitted function for the first chip of a topology; arguments are abstract."""
    mesh = make_mesh(devices=topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:1])
    place = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    with jax.set_mesh(mesh):
        return function.lower(*placed).compile()  # type: ignore[attr-defined]


def read(compiled: Any) -> Cost:
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Cost(
        cycles=program.cycles(program.entry),
        unpriced=program.unpriced(),
        temporary=memory.temp_size_in_bytes,
        total=total + memory.temp_size_in_bytes,
        score_sized=program.gathers_and_scatters(SCORES),
    )


class Program:
    """The text of a compiled program, by computation."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[str]] = {}
        self.entry = name = ""
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line):
                name = header[2]
                self.computations[name] = []
                self.entry = name if header[1] else self.entry
            elif line.startswith("  "):
                self.computations[name].append(line)

    def cycles(self, name: str) -> int:
        """Estimates of a computation's instructions, and of the loops and branches that it runs."""
        total = 0
        for line in self.computations[name]:
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(estimate[1])
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                total += self.trips(loop[1]) * self.cycles(loop[2])
            elif branches := re.search(r" conditional\(.*branch_computations=\{(.*?)\}", line):
                total += max(self.cycles(branch.strip(" %")) for branch in branches[1].split(","))
            elif call := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                total += self.cycles(call[1])
        return total

    def trips(self, condition: str) -> int:
        """How often a loop runs: the constant that its counter, from 0, is compared with."""
        bounds = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(self.computations[condition]))
        if len(bounds) != 1:
            raise ValueError(f"cannot tell how often the loop with condition {condition} runs: bounds {bounds}")
        return int(bounds[0])

    def unpriced(self) -> int:
        return sum(
            bool(re.search(r" (gather|scatter|custom-call)\(", line))
            for lines in self.computations.values()
            for line in lines
        )

    def gathers_and_scatters(self, least: int) -> list[str]:
        """Those with an operand or a result of at least so many elements, as "opcode result_shape"."""
        found = []
        for lines in self.computations.values():
            shapes = {m[1]: m[2] for line in lines if (m := re.match(r"\s+(?:ROOT )?%?(\S+) = (\w+\[[\d,]*\])", line))}
            for line in lines:
                if used := re.match(r"\s+(?:ROOT )?%?(\S+) = .*? (gather|scatter)\((.*?)\)", line):
                    names = [used[1], *(name.strip(" %") for name in used[3].split(","))]
                    if any(_elements(shapes.get(name, "f32[]")) >= least for name in names):
                        found.append(f"{used[2]} {shapes.get(used[1], '')}")
        return found


def _elements(shape: str) -> int:
    return prod(int(size) for size in shape[shape.index("[") + 1 : -1].split(",") if size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    print(f"compiler estimates for one chip of {options.topology}")
    print(
        f"{'':12}{'Mcycles':>10}{'unpriced':>10}{'temp, GB':>10}{'total, GB':>11}{'score-sized':>13}{'compile, s':>12}"
    )
    for name in options.cases:
        start = time.perf_counter()
        try:
            cost = read(compile_for(options.topology, *CASES[name]()))
        except jax.errors.JaxRuntimeError as error:
            reason = re.search(r"Ran out of memory.*", str(error))
            if reason is None:
                raise
            print(f"{name:12}{reason[0][:150]}", flush=True)
            continue
        print(
            f"{name:12}{cost.cycles / 1e6:10.1f}{cost.unpriced:10}{cost.temporary / 1e9:10.2f}{cost.total / 1e9:11.2f}"
            f"{len(cost.score_sized):13}{time.perf_counter() - start:12.0f}",
            flush=True,
        )
        for instruction in sorted(set(cost.score_sized)):
            print(f"{'':12}  {cost.score_sized.count(instruction)} x {instruction}")


if __name__ == "__main__":
    main()
